# Both clouds as one deployment: a pool in each, each trusting the other's workers, one job store, and, if wanted, a
# VPN between the networks (vpn.tf) and one name in front of both gateways (endpoint.tf).

provider "aws" {
  region              = var.aws.region
  allowed_account_ids = [var.aws.account]
}

provider "google" {
  project = var.gcp.account
  region  = var.gcp.region

  # The budget's API wants to know whose quota it is; a person's credentials name none by themselves.
  user_project_override = true
  billing_project       = var.gcp.account
}

locals {
  tags = merge(var.tags, { deployment = var.name, managed-by = "terraform" })

  store = { for cloud in ["aws", "gcp"] : cloud => var.store == null ? null : var.store.cloud != cloud ? null : {
    machine_type      = var.store.machine_type
    version           = var.store.version
    storage_gb        = var.store.storage_gb
    storage_max_gb    = var.store.storage_max_gb
    high_availability = var.store.high_availability
    backup_days       = var.store.backup_days
  } }
}

module "aws" {
  source = "./aws-eks"

  name                  = var.name
  account               = var.aws.account
  region                = var.aws.region
  zones                 = var.aws.zones
  network_cidr          = var.aws.network_cidr
  nat_count             = var.aws.nat_count
  control_plane_cidrs   = var.control_plane_cidrs
  kubernetes_version    = var.aws.kubernetes_version
  cluster_admins        = var.aws.cluster_admins
  gateway_nodes         = var.aws.gateway_nodes
  worker_pools          = var.aws.worker_pools
  namespace             = var.namespace
  upload_retention_days = var.upload_retention_days
  noncurrent_days       = var.noncurrent_days
  browser_origins       = var.browser_origins
  secret_names          = var.secret_names
  database              = local.store["aws"]
  peer_cidrs            = var.vpn ? module.gcp.network.advertise_cidrs : []
  peer_oidc_issuers     = { gcp = module.gcp.oidc_issuer }
  log_retention_days    = var.log_retention_days
  monthly_budget_usd    = var.aws.monthly_budget_usd
  budget_emails         = var.budget_emails
  protect               = var.protect
  generation            = var.generation
  tags                  = var.tags
}

module "gcp" {
  source = "./gcp-gke"

  name                  = var.name
  account               = var.gcp.account
  region                = var.gcp.region
  zones                 = var.gcp.zones
  network_cidr          = var.gcp.network_cidr
  nat_count             = var.gcp.nat_count
  control_plane_cidrs   = var.control_plane_cidrs
  kubernetes_version    = var.gcp.kubernetes_version
  cluster_admins        = var.gcp.cluster_admins
  gateway_nodes         = var.gcp.gateway_nodes
  worker_pools          = var.gcp.worker_pools
  namespace             = var.namespace
  upload_retention_days = var.upload_retention_days
  noncurrent_days       = var.noncurrent_days
  browser_origins       = var.browser_origins
  secret_names          = var.secret_names
  database              = local.store["gcp"]
  peer_cidrs            = var.vpn ? module.aws.network.advertise_cidrs : []
  peer_oidc_issuers     = { aws = module.aws.oidc_issuer }
  log_retention_days    = var.log_retention_days
  monthly_budget_usd    = var.gcp.monthly_budget_usd
  budget_emails         = var.budget_emails
  billing_account       = var.gcp.billing_account
  protect               = var.protect
  generation            = var.generation
  tags                  = var.tags
}
