# The same names as aws-eks's. Nothing here is secret.

output "cluster_name" {
  description = "Name of the cluster."
  value       = google_container_cluster.this.name
}

output "cluster_endpoint" {
  description = "URL of the cluster's API."
  value       = "https://${google_container_cluster.this.endpoint}"
}

output "cluster_ca" {
  description = "Certificate authority of the cluster's API, base64 of PEM."
  value       = google_container_cluster.this.master_auth[0].cluster_ca_certificate
}

output "kubeconfig_command" {
  description = "What to run so that kubectl speaks to the cluster."
  value       = "gcloud container clusters get-credentials ${google_container_cluster.this.name} --project ${var.account} --location ${var.region}${length(var.control_plane_cidrs) == 0 ? " --internal-ip" : ""}"
}

output "oidc_issuer" {
  description = "Issuer of the cluster's service account tokens, for peer_oidc_issuers of the other clouds."
  value       = "https://container.googleapis.com/v1/projects/${var.account}/locations/${var.region}/clusters/${var.name}"
}

output "network" {
  description = "What joins networks need: id, address range, and the ranges that a VPN's router has to tell the other side, because pods live in secondary ranges."
  value = {
    id              = google_compute_network.this.id
    cidr            = var.network_cidr
    advertise_cidrs = [local.nodes_cidr, local.pods_cidr]
    route_table_ids = []
  }
}

output "egress_addresses" {
  description = "Public addresses that workers fetch inputs from, for the allow-lists of others."
  value       = google_compute_address.nat[*].address
}

output "gateway_addresses" {
  description = "Public addresses that clients reach the gateways at, once the cluster's Service has taken them."
  value       = [google_compute_address.gateway.address]
}

output "gateway_service" {
  description = "What the gateways' Service of type LoadBalancer must say to take these addresses."
  value = {
    load_balancer_class = null
    load_balancer_ip    = google_compute_address.gateway.address
    annotations = {
      # A backend service rather than a target pool: it has health checks and drains connections.
      "cloud.google.com/l4-rbs"                      = "enabled"
      "networking.gke.io/load-balancer-ip-addresses" = google_compute_address.gateway.name
    }
  }
}

output "bucket" {
  description = "The pool's objects: name, URL as the worker's --objects takes it, and region."
  value = {
    name   = google_storage_bucket.objects.name
    url    = "gs://${google_storage_bucket.objects.name}"
    region = var.region
  }
}

output "registry" {
  description = "Where images are pushed and pulled: host to log in to, and repository per image."
  value = {
    host = "${var.region}-docker.pkg.dev"
    repositories = {
      for n in ["gateway", "worker"] : n => "${var.region}-docker.pkg.dev/${var.account}/${google_artifact_registry_repository.this.repository_id}/${n}"
    }
  }
}

output "identities" {
  description = "Service accounts with an identity in this cloud: namespace, name, the identity, and the annotations that the service account needs for it."
  value = {
    for n, i in local.pod_identities : n => {
      namespace       = i.namespace
      service_account = i.service_account
      identity        = google_service_account.pod[n].email
      annotations     = { "iam.gke.io/gcp-service-account" = google_service_account.pod[n].email }
    }
  }
}

output "peer_identities" {
  description = "What the other clouds' workers act for to use this bucket, by pool name, the audience of the token that they show, and who trusts the issuer."
  value = {
    for n, p in google_iam_workload_identity_pool_provider.peer : n => {
      identity = google_service_account.pod["worker"].email
      audience = "https://iam.googleapis.com/${p.name}"
      provider = p.name
    }
  }
}

output "node_scheduling" {
  description = "What manifests select nodes by and tolerate, and the disk that a worker's pod can ask for at most. GKE adds kubernetes.io/arch=arm64:NoSchedule to arm64 nodes by itself."
  value = {
    gateway_selector   = { (local.role_label) = "gateway" }
    worker_selector    = { (local.role_label) = "worker" }
    worker_taints      = [{ key = local.role_label, value = "worker", effect = "NoSchedule" }]
    worker_pools       = { for n, p in var.worker_pools : n => { arch = p.arch, spot = p.spot, ephemeral_storage = "${local.ephemeral_gib[n]}Gi" } }
    spot_grace_seconds = 15
  }
}

output "secrets" {
  description = "The rooms for secrets, by their short names: what an ExternalSecret refers to."
  value       = { for n, s in google_secret_manager_secret.this : n => s.secret_id }
}

output "database" {
  description = "The job store's address without a secret, and where operators find theirs; null when there is none."
  value = var.database == null ? null : {
    host     = google_compute_address.database[0].address
    port     = 5432
    name     = local.database_name
    admin    = "postgres"
    secret   = null
    instance = google_sql_database_instance.this[0].name
    # The authority signs this one instance's certificate and nothing else, so verify-ca holds who it is; its name is
    # not the address that we reach it by.
    ca      = google_sql_database_instance.this[0].server_ca_cert[0].cert
    sslmode = "verify-ca"
  }
}
