# Both clouds' outputs under the pools' names. Nothing here is secret.

locals {
  modules = { aws = module.aws, gcp = module.gcp }
}

output "clusters" {
  description = "Per pool: the cluster's name, API, authority, and the command that points kubectl at it."
  value = { for pool, m in local.modules : pool => {
    name = m.cluster_name, endpoint = m.cluster_endpoint, ca = m.cluster_ca, kubeconfig_command = m.kubeconfig_command
  } }
}

output "gateways" {
  description = "Per pool: the public addresses, and what the gateways' Service must say to take them."
  value       = { for pool, m in local.modules : pool => { addresses = m.gateway_addresses, service = m.gateway_service } }
}

output "egress_addresses" {
  description = "Per pool: the addresses that workers fetch inputs from."
  value       = { for pool, m in local.modules : pool => m.egress_addresses }
}

output "buckets" {
  description = "Per pool: the bucket's name, URL and region."
  value       = { for pool, m in local.modules : pool => m.bucket }
}

output "registries" {
  description = "Per pool: where images are pushed and pulled."
  value       = { for pool, m in local.modules : pool => m.registry }
}

output "identities" {
  description = "Per pool: service accounts with an identity in their own cloud."
  value       = { for pool, m in local.modules : pool => m.identities }
}

output "peer_identities" {
  description = "Per bucket's pool: what the other pool's workers act for there, and by which token."
  value       = { for pool, m in local.modules : pool => m.peer_identities }
}

output "node_scheduling" {
  description = "Per pool: what manifests select and tolerate."
  value       = { for pool, m in local.modules : pool => m.node_scheduling }
}

output "secrets" {
  description = "Per pool: the rooms for secrets."
  value       = { for pool, m in local.modules : pool => m.secrets }
}

output "store" {
  description = "The job store's address without a secret, and its cloud; null when it is brought from elsewhere."
  value       = var.store == null ? null : merge({ cloud = var.store.cloud }, var.store.cloud == "aws" ? module.aws.database : module.gcp.database)
}

output "dns" {
  description = "The endpoint's names, the names that workers are to be found by from the other cloud, and the roles that write them; null without an endpoint."
  value = var.endpoint == null ? null : {
    endpoint = var.endpoint.name
    clouds   = { for pool, _ in local.modules : pool => "${pool}.${var.endpoint.name}" }
    workers  = { for pool, _ in local.modules : pool => "workers.${pool}.${var.endpoint.name}" }
    zone_id  = local.endpoint_zone_id
    # What the parent zone has to delegate to; empty for a zone that was there.
    name_servers = flatten(aws_route53_zone.endpoint[*].name_servers)
    roles        = { for n, r in aws_iam_role.dns : n => r.arn }
  }
}
