# What is made, with a cloud that is mocked: the parts whose absence is noticed too late.

mock_provider "google" {
  source = "./tests/mocks"
}

variables {
  account        = "video-trial-123456"
  region         = "europe-west4"
  zones          = ["europe-west4-a", "europe-west4-b", "europe-west4-c"]
  cluster_admins = ["group:operators@video.example"]
}

run "by_default_nothing_is_reached_from_outside_and_all_is_protected" {
  command = plan

  assert {
    condition     = google_container_cluster.this.private_cluster_config[0].enable_private_endpoint && google_container_cluster.this.private_cluster_config[0].enable_private_nodes
    error_message = "the cluster's API must not be public unless somebody names networks"
  }
  assert {
    condition     = google_container_cluster.this.deletion_protection && !google_storage_bucket.objects.force_destroy
    error_message = "the cluster and the bucket must refuse to be destroyed"
  }
  assert {
    condition     = length(google_sql_database_instance.this) == 0
    error_message = "a database that nobody asked for"
  }
  assert {
    condition     = length(google_container_cluster.this.node_locations) == 3 && length(google_compute_address.nat) == 1
    error_message = "three zones behind one address is what the defaults say"
  }
}

run "operators_come_from_named_networks_only" {
  command = plan
  variables {
    control_plane_cidrs = ["203.0.113.0/29"]
  }

  assert {
    condition     = !google_container_cluster.this.private_cluster_config[0].enable_private_endpoint && [for b in google_container_cluster.this.master_authorized_networks_config[0].cidr_blocks : b.cidr_block] == ["203.0.113.0/29"]
    error_message = "the public endpoint is for the named networks"
  }
}

run "worker_pools_scale_from_zero_and_keep_others_away" {
  command = plan

  assert {
    condition     = length(google_container_node_pool.worker) == 4 && alltrue([for p in google_container_node_pool.worker : p.autoscaling[0].total_min_node_count == 0 && p.initial_node_count == 0 && p.node_config[0].spot])
    error_message = "a pool for each machine type, of spot nodes, from zero"
  }
  assert {
    condition     = alltrue([for p in google_container_node_pool.worker : p.node_config[0].taint[0].key == "millrace.dev/role" && p.node_config[0].taint[0].effect == "NO_SCHEDULE"])
    error_message = "what is not a worker must not start a worker's node"
  }
  assert {
    condition     = alltrue([for p in google_container_node_pool.worker : p.node_config[0].workload_metadata_config[0].mode == "GKE_METADATA"])
    error_message = "pods must not get the node's credentials"
  }
  assert {
    condition     = alltrue([for gib in local.ephemeral_gib : gib == 82 && floor(gib / local.worker_scratch_gib) == 2])
    error_message = "8 vCPUs are for two workers, and their disk has to be"
  }
}

run "machines_get_the_disks_that_they_can_have" {
  command = plan
  variables {
    worker_pools = {
      new = { arch = "arm64", machine_types = ["c4a-highcpu-8"], max = 5 }
      old = { arch = "amd64", machine_types = ["c2d-highcpu-8"], max = 5 }
    }
  }

  assert {
    condition     = google_container_node_pool.worker["new-0"].node_config[0].disk_type == "hyperdisk-balanced" && google_container_node_pool.worker["old-0"].node_config[0].disk_type == "pd-balanced"
    error_message = "c4a takes Hyperdisks only, c2d none"
  }
}

run "a_protected_database_is_private_and_without_a_password_of_ours" {
  command = plan
  variables {
    database = { machine_type = "db-custom-2-8192" }
  }

  assert {
    condition     = google_sql_database_instance.this[0].deletion_protection && google_sql_database_instance.this[0].settings[0].deletion_protection_enabled
    error_message = "protect must hold the database, here and in the API"
  }
  assert {
    condition     = google_sql_database_instance.this[0].root_password == null
    error_message = "no password may stand in the state"
  }
  assert {
    condition     = !google_sql_database_instance.this[0].settings[0].ip_configuration[0].ipv4_enabled && google_sql_database_instance.this[0].settings[0].ip_configuration[0].ssl_mode == "ENCRYPTED_ONLY" && google_sql_database_instance.this[0].settings[0].availability_type == "REGIONAL"
    error_message = "the database is private, by TLS only, and in two zones"
  }
}

run "a_budget_mails_at_four_points" {
  command = plan
  variables {
    monthly_budget_usd = 1500
    budget_emails      = ["ops@video.example"]
    billing_account    = "012345-6789AB-CDEF01"
  }

  assert {
    condition     = length(google_billing_budget.month[0].threshold_rules) == 4 && google_billing_budget.month[0].amount[0].specified_amount[0].units == "1500"
    error_message = "50, 80 and 100 percent and the forecast"
  }
}

run "a_peers_issuer_is_believed_about_workers_only" {
  command = plan
  variables {
    peer_cidrs        = ["10.20.0.0/16"]
    peer_oidc_issuers = { aws = "https://oidc.eks.eu-west-1.amazonaws.com/id/0123" }
  }

  assert {
    condition     = google_iam_workload_identity_pool_provider.peer["aws"].attribute_condition == "assertion.sub == 'system:serviceaccount:millrace:worker'"
    error_message = "whatever else the peer's cluster runs has no rights here"
  }
  assert {
    condition     = one(google_compute_firewall.peer_to_workers[0].allow).ports == tolist(["9000"])
    error_message = "the peer's gateways reach workers' port and no other"
  }
}

run "the_smallest_disk_is_for_one_worker" {
  command = plan
  variables {
    worker_pools = { small = { arch = "amd64", machine_types = ["c4-highcpu-8"], max = 5, disk_gb = 90 } }
  }

  assert {
    condition     = floor(local.ephemeral_gib["small"] / local.worker_scratch_gib) == 1
    error_message = "a disk that is accepted and holds no worker makes a pool that never starts"
  }
}
