resource "google_container_cluster" "this" {
  #checkov:skip=CKV_GCP_21:resource_labels are local.labels, which the scanner does not work out
  #checkov:skip=CKV_GCP_65:RBAC for Google Groups takes a group gke-security-groups of the organisation, which a project cannot make; cluster_admins takes groups by IAM
  #checkov:skip=CKV_GCP_66:Binary Authorization takes attestors and a signing pipeline of the organisation; images are pulled by digest from a registry with immutable tags
  project  = var.account
  location = var.region
  name     = var.name

  network         = google_compute_network.this.id
  subnetwork      = google_compute_subnetwork.nodes.id
  networking_mode = "VPC_NATIVE"
  node_locations  = local.zones
  # Cilium: NetworkPolicies are enforced, and what they drop can be logged.
  datapath_provider           = "ADVANCED_DATAPATH"
  enable_intranode_visibility = true
  network_policy {
    enabled = false # this would be the older plugin's
  }
  # 64 addresses a node and not 256, or /17 would be 128 nodes.
  default_max_pods_per_node = 32
  enable_l4_ilb_subsetting  = true

  # It begins with this version; the channel raises it. Nodes follow within the window below.
  min_master_version = var.kubernetes_version
  release_channel {
    channel = "REGULAR"
  }

  # A window of four hours each night: GKE refuses rarer ones (48 hours within 32 days are the least).
  maintenance_policy {
    daily_maintenance_window {
      start_time = "02:00"
    }
  }

  # The pool that every cluster is born with is removed at once; our own follow. While it lives it must not need the
  # default service account, which many organisations turn off.
  remove_default_node_pool = true
  initial_node_count       = 1
  node_config {
    service_account = google_service_account.node.email
    oauth_scopes    = ["https://www.googleapis.com/auth/cloud-platform"]
    spot            = true

    shielded_instance_config {
      enable_secure_boot          = true
      enable_integrity_monitoring = true
    }
    workload_metadata_config {
      mode = "GKE_METADATA"
    }
  }

  ip_allocation_policy {
    cluster_secondary_range_name  = "pods"
    services_secondary_range_name = "services"
  }

  private_cluster_config {
    enable_private_nodes    = true
    enable_private_endpoint = length(var.control_plane_cidrs) == 0

    # Operators come by VPN from another region than the cluster's.
    master_global_access_config {
      enabled = true
    }
  }

  # The block without a network lets nobody in from outside.
  master_authorized_networks_config {
    gcp_public_cidrs_access_enabled = false

    dynamic "cidr_blocks" {
      for_each = var.control_plane_cidrs
      content {
        cidr_block = cidr_blocks.value
      }
    }
  }

  master_auth {
    client_certificate_config {
      issue_client_certificate = false
    }
  }

  workload_identity_config {
    workload_pool = "${var.account}.svc.id.goog"
  }

  database_encryption {
    state    = "ENCRYPTED"
    key_name = google_kms_crypto_key.platform.id
  }

  logging_config {
    enable_components = ["SYSTEM_COMPONENTS", "APISERVER", "CONTROLLER_MANAGER", "SCHEDULER", "WORKLOADS"]
  }

  monitoring_config {
    enable_components = ["SYSTEM_COMPONENTS"]

    # Prometheus is brought by the manifests, the same in each cloud.
    managed_prometheus {
      enabled = false
    }
  }

  cluster_autoscaling {
    # An empty worker node goes sooner.
    autoscaling_profile = "OPTIMIZE_UTILIZATION"
  }

  addons_config {
    gce_persistent_disk_csi_driver_config {
      enabled = true
    }
    dns_cache_config {
      enabled = true
    }
    network_policy_config {
      disabled = true # the data path enforces them
    }
  }

  cost_management_config {
    enabled = true
  }

  security_posture_config {
    mode               = "BASIC"
    vulnerability_mode = "VULNERABILITY_DISABLED"
  }

  enable_shielded_nodes = true
  deletion_protection   = var.protect
  resource_labels       = local.labels

  lifecycle {
    # That pool is gone.
    ignore_changes = [node_config, initial_node_count]
  }

  depends_on = [google_kms_crypto_key_iam_member.cluster, google_project_iam_member.node, google_compute_router_nat.this]

  timeouts {
    create = "60m"
    update = "90m"
    delete = "60m"
  }
}

resource "google_project_iam_member" "admin" {
  for_each = toset(var.cluster_admins)

  project = var.account
  role    = "roles/container.admin"
  member  = each.value
}
