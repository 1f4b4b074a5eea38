resource "google_service_account" "node" {
  project      = var.account
  account_id   = "${var.name}-node"
  display_name = "Nodes of ${var.name}"

  depends_on = [google_project_service.this]
}

# Only what a kubelet and the logging agent need.
resource "google_project_iam_member" "node" {
  project = var.account
  role    = "roles/container.defaultNodeServiceAccount"
  member  = google_service_account.node.member
}

locals {
  # A pool has one machine type; a worker pool with several becomes as many.
  worker_node_pools = merge([
    for n, p in var.worker_pools : {
      for i, t in p.machine_types : "${n}-${i}" => {
        pool = n, machine_type = t, spot = p.spot, min = p.min, max = p.max, disk_gb = p.disk_gb
      }
    }
  ]...)

  gateway_node_pools = { for i, t in var.gateway_nodes.machine_types : "gateway-${i}" => t }

  # The newer machine types take Hyperdisks and no persistent disks; the older ones the other way round.
  hyperdisk = "^(c4|c4a|c4d|n4|n4a|n4d)-"

  # What a worker's pod asks for, in k8s/base/worker.yaml.
  worker_scratch_gib = 38

  # Disk that pods can have. The system's partitions take 6 GiB, a tenth of the rest is kept free for evictions, and GKE
  # reserves 6 GiB and 35 percent of the disk, between half of it and 100 GiB at most: of 100 GiB there are 43 left.
  ephemeral_gib = { for n, p in var.worker_pools : n => floor((p.disk_gb - 6) * 0.9 - min(p.disk_gb * 0.5, 6 + p.disk_gb * 0.35, 100)) }
}

resource "google_container_node_pool" "gateway" {
  for_each = local.gateway_node_pools

  project        = var.account
  location       = var.region
  cluster        = google_container_cluster.this.name
  name           = each.key
  node_locations = local.zones
  # Counted by zone, unlike the bounds.
  initial_node_count = ceil(var.gateway_nodes.min / length(var.zones))

  autoscaling {
    total_min_node_count = var.gateway_nodes.min
    total_max_node_count = var.gateway_nodes.max
    location_policy      = "BALANCED"
  }

  management {
    auto_repair  = true
    auto_upgrade = true
  }

  upgrade_settings {
    max_surge       = 1
    max_unavailable = 0
  }

  node_config {
    machine_type    = each.value
    disk_size_gb    = var.gateway_nodes.disk_gb
    disk_type       = can(regex(local.hyperdisk, each.value)) ? "hyperdisk-balanced" : "pd-balanced"
    image_type      = "COS_CONTAINERD"
    service_account = google_service_account.node.email
    oauth_scopes    = ["https://www.googleapis.com/auth/cloud-platform"]
    labels          = { (local.role_label) = "gateway" }
    resource_labels = local.labels
    tags            = ["${var.name}-gateway"]

    shielded_instance_config {
      enable_secure_boot          = true
      enable_integrity_monitoring = true
    }
    workload_metadata_config {
      mode = "GKE_METADATA"
    }
    kubelet_config {
      insecure_kubelet_readonly_port_enabled = "FALSE"
    }
  }

  # The autoscaler's to change.
  lifecycle {
    ignore_changes = [initial_node_count]
  }
}

# GKE taints arm64 nodes with kubernetes.io/arch=arm64:NoSchedule by itself; the manifests tolerate it.
resource "google_container_node_pool" "worker" {
  for_each = local.worker_node_pools

  project            = var.account
  location           = var.region
  cluster            = google_container_cluster.this.name
  name               = each.key
  node_locations     = local.zones
  initial_node_count = ceil(each.value.min / length(var.zones))

  autoscaling {
    total_min_node_count = each.value.min
    total_max_node_count = each.value.max
    # Wherever spot machines are to be had.
    location_policy = "ANY"
  }

  management {
    auto_repair  = true
    auto_upgrade = true
  }

  upgrade_settings {
    max_surge       = 1
    max_unavailable = 1
  }

  node_config {
    machine_type    = each.value.machine_type
    spot            = each.value.spot
    disk_size_gb    = each.value.disk_gb
    disk_type       = can(regex(local.hyperdisk, each.value.machine_type)) ? "hyperdisk-balanced" : "pd-balanced"
    image_type      = "COS_CONTAINERD"
    service_account = google_service_account.node.email
    oauth_scopes    = ["https://www.googleapis.com/auth/cloud-platform"]
    labels = {
      (local.role_label)   = "worker"
      "millrace.dev/nodes" = each.value.pool
      "millrace.dev/spot"  = tostring(each.value.spot)
    }
    resource_labels = local.labels
    tags            = ["${var.name}-worker"]

    taint {
      key    = local.role_label
      value  = "worker"
      effect = "NO_SCHEDULE"
    }

    shielded_instance_config {
      enable_secure_boot          = true
      enable_integrity_monitoring = true
    }
    workload_metadata_config {
      mode = "GKE_METADATA"
    }
    kubelet_config {
      insecure_kubelet_readonly_port_enabled = "FALSE"
    }
  }

  lifecycle {
    ignore_changes = [initial_node_count]
  }
}
