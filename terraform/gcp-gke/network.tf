# 10.40.0.0/16 becomes: /20 for nodes and load balancers, /20 for services, /17 for pods (64 addresses a node, so 512
# nodes). All of them are routed, so the other cloud's gateways reach pods by their own addresses.

locals {
  nodes_cidr    = cidrsubnet(var.network_cidr, 4, 0)
  services_cidr = cidrsubnet(var.network_cidr, 4, 1)
  pods_cidr     = cidrsubnet(var.network_cidr, 1, 1)
}

resource "google_compute_network" "this" {
  project                 = var.account
  name                    = var.name
  auto_create_subnetworks = false
  routing_mode            = "REGIONAL"
  # No route to the internet but the one that Cloud NAT needs, below.
  delete_default_routes_on_create = true

  depends_on = [google_project_service.this]
}

resource "google_compute_subnetwork" "nodes" {
  project                  = var.account
  region                   = var.region
  name                     = "${var.name}-nodes"
  network                  = google_compute_network.this.id
  ip_cidr_range            = local.nodes_cidr
  stack_type               = "IPV4_ONLY"
  private_ip_google_access = true

  secondary_ip_range {
    range_name    = "services"
    ip_cidr_range = local.services_cidr
  }
  secondary_ip_range {
    range_name    = "pods"
    ip_cidr_range = local.pods_cidr
  }

  log_config {
    aggregation_interval = "INTERVAL_10_MIN"
    flow_sampling        = 0.1
    metadata             = "INCLUDE_ALL_METADATA"
  }
}

resource "google_compute_route" "internet" {
  project          = var.account
  name             = "${var.name}-internet"
  network          = google_compute_network.this.name
  dest_range       = "0.0.0.0/0"
  next_hop_gateway = "default-internet-gateway"
  priority         = 1000
}

resource "google_compute_address" "nat" {
  count = var.nat_count

  project = var.account
  region  = var.region
  name    = "${var.name}-nat-${count.index}"
  labels  = local.labels

  depends_on = [google_project_service.this]
}

resource "google_compute_router" "nat" {
  project = var.account
  region  = var.region
  name    = "${var.name}-nat"
  network = google_compute_network.this.id
}

resource "google_compute_router_nat" "this" {
  project                            = var.account
  region                             = var.region
  name                               = var.name
  router                             = google_compute_router.nat.name
  nat_ip_allocate_option             = "MANUAL_ONLY"
  nat_ips                            = google_compute_address.nat[*].self_link
  source_subnetwork_ip_ranges_to_nat = "ALL_SUBNETWORKS_ALL_IP_RANGES"

  # 64 ports a node are used up by one worker that fetches many small files; let busy nodes take more.
  enable_dynamic_port_allocation      = true
  enable_endpoint_independent_mapping = false
  min_ports_per_vm                    = 64
  max_ports_per_vm                    = 8192

  log_config {
    enable = true
    filter = "ERRORS_ONLY"
  }
}

# The gateways' address exists before the load balancer that the cluster makes, so DNS can name it beforehand.
resource "google_compute_address" "gateway" {
  project      = var.account
  region       = var.region
  name         = "${var.name}-gateway"
  address_type = "EXTERNAL"
  network_tier = "PREMIUM"
  labels       = local.labels

  depends_on = [google_project_service.this]
}

# The gateways of the other clouds ask workers directly.
resource "google_compute_firewall" "peer_to_workers" {
  count = length(var.peer_cidrs) > 0 ? 1 : 0

  project       = var.account
  name          = "${var.name}-peer-to-workers"
  description   = "Gateways of the other clouds to workers"
  network       = google_compute_network.this.id
  direction     = "INGRESS"
  source_ranges = var.peer_cidrs
  target_tags   = ["${var.name}-worker"]

  allow {
    protocol = "tcp"
    ports    = [tostring(local.worker_port)]
  }
}
