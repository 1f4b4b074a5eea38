# The root's own refusals, and how it joins the clouds, with both mocked.

mock_provider "aws" {
  source = "./tests/mocks"
}

mock_provider "google" {
  source = "./tests/mocks"
}

variables {
  aws = {
    account        = "123456789012"
    region         = "eu-west-1"
    zones          = ["eu-west-1a", "eu-west-1b", "eu-west-1c"]
    cluster_admins = ["arn:aws:iam::123456789012:role/operators"]
  }
  gcp = {
    account        = "video-trial-123456"
    region         = "europe-west4"
    zones          = ["europe-west4-a", "europe-west4-b", "europe-west4-c"]
    cluster_admins = ["group:operators@video.example"]
  }
}

run "one_store_is_reached_from_both_clouds_through_four_tunnels" {
  command = plan
  variables {
    store = { cloud = "aws", machine_type = "db.m7g.large" }
  }

  assert {
    condition     = length(google_compute_vpn_tunnel.aws) == 4 && length(aws_vpn_connection.gcp) == 2
    error_message = "two connections of two tunnels each"
  }
  assert {
    condition     = [for i in range(4) : google_compute_vpn_tunnel.aws["tunnel-${i}"].vpn_gateway_interface] == [0, 0, 1, 1] && [for i in range(4) : google_compute_vpn_tunnel.aws["tunnel-${i}"].peer_external_gateway_interface] == [0, 1, 2, 3]
    error_message = "each connection ends at an interface of its own"
  }
  assert {
    condition     = length(aws_route.gcp) == 8 && toset(aws_route.gcp[*].destination_cidr_block) == toset(["10.40.0.0/20", "10.40.128.0/17"])
    error_message = "Google's nodes and pods must be routed from every zone and from the database"
  }
}

run "a_name_for_both_clouds_by_health" {
  command = plan
  variables {
    endpoint = { name = "video.example.org", gcp_weight = 0 }
  }

  assert {
    condition     = length(aws_route53_health_check.cloud) == 2 && alltrue([for h in aws_route53_health_check.cloud : h.resource_path == "/readyz"])
    error_message = "each cloud's gateways are asked whether they are ready"
  }
  assert {
    condition     = one(aws_route53_record.endpoint["gcp"].weighted_routing_policy).weight == 0 && aws_route53_record.cloud["gcp"].name == "gcp.video.example.org"
    error_message = "a weight of 0 takes new clients away and leaves the cloud's own name"
  }
}

run "without_a_vpn_nothing_of_it_is_made" {
  command = plan
  variables {
    vpn = false
  }

  assert {
    condition     = length(google_compute_vpn_tunnel.aws) == 0 && length(aws_vpn_gateway.this) == 0
    error_message = "no VPN was asked for"
  }
}

run "two_networks_that_are_the_same" {
  command = plan
  variables {
    gcp = {
      account        = "video-trial-123456"
      region         = "europe-west4"
      zones          = ["europe-west4-a", "europe-west4-b"]
      cluster_admins = ["group:operators@video.example"]
      network_cidr   = "10.20.0.0/16"
    }
  }
  expect_failures = [var.gcp]
}

run "a_store_that_the_other_cloud_cannot_reach" {
  command = plan
  variables {
    store = { cloud = "aws", machine_type = "db.m7g.large" }
    vpn   = false
  }
  expect_failures = [var.store]
}

run "a_store_in_no_cloud" {
  command = plan
  variables {
    store = { cloud = "azure", machine_type = "db.m7g.large" }
  }
  expect_failures = [var.store]
}

run "an_endpoint_whose_name_is_a_url" {
  command = plan
  variables {
    endpoint = { name = "https://video.example.org" }
  }
  expect_failures = [var.endpoint]
}

run "an_endpoint_in_a_zone_by_name" {
  command = plan
  variables {
    endpoint = { name = "video.example.org", zone_id = "example.org" }
  }
  expect_failures = [var.endpoint]
}

run "an_endpoint_without_any_weight" {
  command = plan
  variables {
    endpoint = { name = "video.example.org", aws_weight = 0, gcp_weight = 0 }
  }
  expect_failures = [var.endpoint]
}

run "an_account_that_is_none" {
  command = plan
  variables {
    aws = {
      account        = "mine"
      region         = "eu-west-1"
      zones          = ["eu-west-1a", "eu-west-1b"]
      cluster_admins = ["arn:aws:iam::123456789012:role/operators"]
    }
  }
  expect_failures = [var.aws]
}

run "a_project_by_its_number" {
  command = plan
  variables {
    gcp = {
      account        = "123456789012"
      region         = "europe-west4"
      zones          = ["europe-west4-a", "europe-west4-b"]
      cluster_admins = ["group:operators@video.example"]
    }
  }
  expect_failures = [var.gcp]
}

run "values_that_no_cloud_takes" {
  command = plan
  variables {
    name                  = "Millrace"
    control_plane_cidrs   = ["203.0.113.7"]
    namespace             = "default"
    upload_retention_days = 0
    noncurrent_days       = 0
    browser_origins       = ["*"]
    secret_names          = ["store_url"]
    log_retention_days    = 1
    budget_emails         = ["nobody"]
    generation            = 0
    tags                  = { Team = "Video" }
  }
  expect_failures = [
    var.name, var.control_plane_cidrs, var.namespace, var.upload_retention_days, var.noncurrent_days,
    var.browser_origins, var.secret_names, var.log_retention_days, var.budget_emails, var.generation, var.tags,
  ]
}
