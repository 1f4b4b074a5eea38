# Every validation refuses a value that it is there for. A run gives one bad value to each of several variables, and
# fails unless every one of them is refused; a validation that lets its value pass has its run fail by name.

mock_provider "aws" {
  source = "./tests/mocks"
}

variables {
  account        = "123456789012"
  region         = "eu-west-1"
  zones          = ["eu-west-1a", "eu-west-1b", "eu-west-1c"]
  cluster_admins = ["arn:aws:iam::123456789012:role/operators"]
}

run "names_that_clouds_refuse" {
  command = plan
  variables {
    name                = "Millrace"
    account             = "my-account"
    region              = "eu-west-1a"
    network_cidr        = "10.20.0.0/20"
    control_plane_cidrs = ["203.0.113.7"]
    kubernetes_version  = "1.34.1"
    cluster_admins      = ["operators"]
    namespace           = "Media"
  }
  expect_failures = [
    var.name, var.account, var.region, var.network_cidr, var.control_plane_cidrs,
    var.kubernetes_version, var.cluster_admins, var.namespace,
  ]
}

run "values_that_fit_the_form_and_not_the_purpose" {
  command = plan
  variables {
    name                = "a-name-of-more-than-20-characters"
    network_cidr        = "100.64.0.0/16"
    nat_count           = 2
    control_plane_cidrs = ["0.0.0.0/0"]
    kubernetes_version  = "1.31"
    cluster_admins      = ["arn:aws:iam::123456789012:role/a", "arn:aws:iam::123456789012:role/a"]
    namespace           = "kube-media"
  }
  expect_failures = [
    var.name, var.network_cidr, var.nat_count, var.control_plane_cidrs, var.kubernetes_version, var.cluster_admins,
    var.namespace,
  ]
}

run "nobody_to_administer_and_the_services_own_network" {
  command = plan
  variables {
    network_cidr   = "172.20.0.0/16"
    cluster_admins = []
    namespace      = "default"
    nat_count      = 0
  }
  expect_failures = [var.network_cidr, var.cluster_admins, var.namespace, var.nat_count]
}

run "a_network_that_does_not_begin_where_it_says" {
  command = plan
  variables {
    network_cidr = "10.20.1.0/16"
    name         = "millrace-"
    account      = "12345678901"
  }
  expect_failures = [var.network_cidr, var.name, var.account]
}

run "an_architecture_that_is_none" {
  command = plan
  variables {
    gateway_nodes = { arch = "arm", machine_types = ["m7g.large"] }
    worker_pools  = { spot = { arch = "x86", machine_types = ["c7a.2xlarge"], max = 5 } }
  }
  expect_failures = [var.gateway_nodes, var.worker_pools]
}

run "machine_types_of_another_cloud" {
  command = plan
  variables {
    gateway_nodes = { arch = "amd64", machine_types = ["n4-standard-2"] }
    worker_pools  = { spot = { arch = "amd64", machine_types = ["c4-highcpu-8"], max = 5 } }
  }
  expect_failures = [var.gateway_nodes, var.worker_pools]
}

run "no_machine_types" {
  command = plan
  variables {
    gateway_nodes = { machine_types = [] }
    worker_pools  = { spot = { arch = "amd64", machine_types = [], max = 5 } }
  }
  expect_failures = [var.gateway_nodes, var.worker_pools]
}

run "arm64_machines_called_amd64" {
  command = plan
  variables {
    gateway_nodes = { arch = "amd64", machine_types = ["m7g.large"] }
    worker_pools  = { spot = { arch = "amd64", machine_types = ["c7a.2xlarge", "c7gd.2xlarge"], max = 5 } }
  }
  expect_failures = [var.gateway_nodes, var.worker_pools]
}

run "amd64_machines_called_arm64" {
  command = plan
  variables {
    gateway_nodes = { arch = "arm64", machine_types = ["m7i.large"] }
    worker_pools  = { spot = { arch = "arm64", machine_types = ["c7i.2xlarge"], max = 5 } }
  }
  expect_failures = [var.gateway_nodes, var.worker_pools]
}

run "one_gateway_node_is_none_when_it_goes" {
  command = plan
  variables {
    gateway_nodes = { machine_types = ["m7g.large"], min = 1 }
    worker_pools  = { spot = { arch = "amd64", machine_types = ["c7a.2xlarge"], min = 6, max = 5 } }
  }
  expect_failures = [var.gateway_nodes, var.worker_pools]
}

run "bounds_the_wrong_way_round" {
  command = plan
  variables {
    gateway_nodes = { machine_types = ["m7g.large"], min = 4, max = 3 }
    worker_pools  = { spot = { arch = "amd64", machine_types = ["c7a.2xlarge"], max = 0 } }
  }
  expect_failures = [var.gateway_nodes, var.worker_pools]
}

run "disks_too_small" {
  command = plan
  variables {
    gateway_nodes = { machine_types = ["m7g.large"], disk_gb = 10 }
    worker_pools  = { spot = { arch = "amd64", machine_types = ["c7a.2xlarge"], max = 5, disk_gb = 59 } }
  }
  expect_failures = [var.gateway_nodes, var.worker_pools]
}

run "a_worker_pool_called_gateway" {
  command = plan
  variables {
    worker_pools = { gateway = { arch = "amd64", machine_types = ["c7a.2xlarge"], max = 5 } }
  }
  expect_failures = [var.worker_pools]
}

run "no_worker_pool" {
  command = plan
  variables {
    worker_pools = {}
  }
  expect_failures = [var.worker_pools]
}

run "keeping_and_reaching" {
  command = plan
  variables {
    upload_retention_days = 1
    noncurrent_days       = 0
    browser_origins       = ["*"]
    secret_names          = ["store_url"]
    peer_cidrs            = ["198.51.100.0/24"]
    peer_oidc_issuers     = { gcp = "http://container.googleapis.com/v1" }
    log_retention_days    = 100
    monthly_budget_usd    = -1
    generation            = 0
    tags                  = { Environment = "prod" }
  }
  expect_failures = [
    var.upload_retention_days, var.noncurrent_days, var.browser_origins, var.secret_names, var.peer_cidrs,
    var.peer_oidc_issuers, var.log_retention_days, var.monthly_budget_usd, var.generation, var.tags,
  ]
}

run "keeping_and_reaching_almost_right" {
  command = plan
  variables {
    upload_retention_days = 2.5
    noncurrent_days       = 91
    browser_origins       = ["https://video.example/upload"]
    peer_cidrs            = ["10.40.0.0"]
    peer_oidc_issuers     = { gcp = "https://container.googleapis.com/v1/" }
    monthly_budget_usd    = 1500
    budget_emails         = []
    generation            = 1.5
    tags                  = { deployment = "mine" }
  }
  expect_failures = [
    var.upload_retention_days, var.noncurrent_days, var.browser_origins, var.peer_cidrs, var.peer_oidc_issuers,
    var.budget_emails, var.generation, var.tags,
  ]
}

run "a_peer_with_a_name_that_no_role_can_have" {
  command = plan
  variables {
    peer_oidc_issuers = { "google cloud" = "https://container.googleapis.com/v1" }
    tags              = { team = "Video Team" }
    budget_emails     = ["nobody"]
  }
  expect_failures = [var.peer_oidc_issuers, var.tags, var.budget_emails]
}

run "a_database_of_another_cloud" {
  command = plan
  variables {
    database = { machine_type = "db-custom-2-8192" }
  }
  expect_failures = [var.database]
}

run "a_database_of_an_unknown_version" {
  command = plan
  variables {
    database = { machine_type = "db.m7g.large", version = "17.2" }
  }
  expect_failures = [var.database]
}

run "a_database_that_cannot_grow" {
  command = plan
  variables {
    database = { machine_type = "db.m7g.large", storage_gb = 100, storage_max_gb = 100 }
  }
  expect_failures = [var.database]
}

run "a_database_without_backups" {
  command = plan
  variables {
    database = { machine_type = "db.m7g.large", backup_days = 0 }
  }
  expect_failures = [var.database]
}

run "one_zone_falls_together" {
  command = plan
  variables {
    zones = ["eu-west-1a"]
  }
  expect_failures = [var.zones]
}

run "one_zone_named_twice" {
  command = plan
  variables {
    zones = ["eu-west-1a", "eu-west-1a"]
  }
  expect_failures = [var.zones]
}

run "a_zone_of_another_region" {
  command = plan
  variables {
    zones = ["eu-west-1a", "eu-central-1a"]
  }
  expect_failures = [var.zones]
}
