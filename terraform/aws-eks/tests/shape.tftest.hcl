# What is made, with a cloud that is mocked: the parts whose absence is noticed too late.

mock_provider "aws" {
  source = "./tests/mocks"
}

variables {
  account        = "123456789012"
  region         = "eu-west-1"
  zones          = ["eu-west-1a", "eu-west-1b", "eu-west-1c"]
  cluster_admins = ["arn:aws:iam::123456789012:role/operators"]
}

run "by_default_nothing_is_reached_from_outside_and_all_is_protected" {
  command = plan

  assert {
    condition     = !aws_eks_cluster.this.vpc_config[0].endpoint_public_access
    error_message = "the cluster's API must not be public unless somebody names networks"
  }
  assert {
    condition     = !aws_s3_bucket.objects.force_destroy
    error_message = "the bucket must refuse to be destroyed with what is in it"
  }
  assert {
    condition     = length(aws_db_instance.this) == 0
    error_message = "a database that nobody asked for"
  }
  assert {
    condition     = length(aws_nat_gateway.this) == 1 && length(aws_subnet.private) == 3
    error_message = "three zones behind one NAT gateway is what the defaults say"
  }
}

run "worker_pools_scale_from_zero_and_keep_others_away" {
  command = plan

  assert {
    condition     = alltrue([for g in aws_eks_node_group.worker : g.scaling_config[0].min_size == 0 && g.capacity_type == "SPOT"])
    error_message = "worker pools are spot and start at zero unless said otherwise"
  }
  assert {
    condition     = alltrue([for g in aws_eks_node_group.worker : one(g.taint).key == "millrace.dev/role" && one(g.taint).effect == "NO_SCHEDULE"])
    error_message = "what is not a worker must not start a worker's node"
  }
  assert {
    condition     = alltrue([for g in aws_eks_node_group.worker : g.tags["k8s.io/cluster-autoscaler/node-template/resources/ephemeral-storage"] == "80Gi"]) && alltrue([for gib in local.ephemeral_gib : floor(gib / local.worker_scratch_gib) == 2])
    error_message = "without the tag the autoscaler takes an empty pool's nodes to have no disk"
  }
  assert {
    condition     = aws_eks_node_group.worker["spot-arm64"].ami_type == "AL2023_ARM_64_STANDARD" && aws_eks_node_group.worker["spot-amd64"].ami_type == "AL2023_x86_64_STANDARD"
    error_message = "each architecture has its own image"
  }
}

run "a_protected_database_is_private_encrypted_and_without_a_password_of_ours" {
  command = plan
  variables {
    database = { machine_type = "db.m7g.large" }
  }

  assert {
    condition     = aws_db_instance.this[0].deletion_protection && !aws_db_instance.this[0].skip_final_snapshot
    error_message = "protect must hold the database and keep a last snapshot"
  }
  assert {
    condition     = aws_db_instance.this[0].manage_master_user_password && aws_db_instance.this[0].password == null
    error_message = "no password may stand in the state"
  }
  assert {
    condition     = !aws_db_instance.this[0].publicly_accessible && aws_db_instance.this[0].storage_encrypted && aws_db_instance.this[0].multi_az
    error_message = "the database is private, encrypted and in two zones"
  }
}

run "a_budget_mails_at_four_points" {
  command = plan
  variables {
    monthly_budget_usd = 1500
    budget_emails      = ["ops@video.example"]
  }

  assert {
    condition     = length(aws_budgets_budget.month[0].notification) == 4 && aws_budgets_budget.month[0].limit_amount == "1500"
    error_message = "50, 80 and 100 percent and the forecast"
  }
}

run "a_peers_workers_come_by_their_own_clusters_tokens" {
  command = plan
  variables {
    peer_cidrs        = ["10.40.0.0/16"]
    peer_oidc_issuers = { gcp = "https://container.googleapis.com/v1/projects/p/locations/l/clusters/c" }
  }

  assert {
    condition     = aws_iam_openid_connect_provider.peer["gcp"].client_id_list == toset(["sts.amazonaws.com"])
    error_message = "the token's audience is AWS and nobody else"
  }
  assert {
    condition     = aws_vpc_security_group_ingress_rule.peer_to_workers["10.40.0.0/16"].from_port == 9000
    error_message = "the peer's gateways reach workers' port and no other"
  }
}

run "a_zone_of_its_own_for_each_nat_gateway" {
  command = plan
  variables {
    nat_count = 3
  }

  assert {
    condition     = length(aws_nat_gateway.this) == 3
    error_message = "three NAT gateways were asked for"
  }
}

run "another_account_is_refused_before_anything_is_made" {
  command = plan
  variables {
    account = "999999999999"
  }
  expect_failures = [terraform_data.place]
}

run "another_region_is_refused_before_anything_is_made" {
  command = plan
  variables {
    region = "eu-central-1"
    zones  = ["eu-central-1a", "eu-central-1b"]
  }
  expect_failures = [terraform_data.place]
}

run "the_smallest_disk_is_for_one_worker" {
  command = plan
  variables {
    worker_pools = { small = { arch = "amd64", machine_types = ["c7a.2xlarge"], max = 5, disk_gb = 60 } }
  }

  assert {
    condition     = floor(local.ephemeral_gib["small"] / local.worker_scratch_gib) == 1
    error_message = "a disk that is accepted and holds no worker makes a pool that never starts"
  }
}
