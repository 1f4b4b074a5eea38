# The same names as gcp-gke's. Nothing here is secret.

output "cluster_name" {
  description = "Name of the cluster."
  value       = aws_eks_cluster.this.name
}

output "cluster_endpoint" {
  description = "URL of the cluster's API."
  value       = aws_eks_cluster.this.endpoint
}

output "cluster_ca" {
  description = "Certificate authority of the cluster's API, base64 of PEM."
  value       = aws_eks_cluster.this.certificate_authority[0].data
}

output "kubeconfig_command" {
  description = "What to run so that kubectl speaks to the cluster."
  value       = "aws eks update-kubeconfig --region ${var.region} --name ${aws_eks_cluster.this.name} --alias ${var.name}-aws"
}

output "oidc_issuer" {
  description = "Issuer of the cluster's service account tokens, for peer_oidc_issuers of the other clouds."
  value       = aws_eks_cluster.this.identity[0].oidc[0].issuer
}

output "network" {
  description = "What joins networks need: id, address range, the ranges that pods and nodes speak from, and route tables that a VPN has to fill."
  value = {
    id              = aws_vpc.this.id
    cidr            = aws_vpc.this.cidr_block
    advertise_cidrs = [aws_vpc.this.cidr_block]
    route_table_ids = concat([for t in aws_route_table.private : t.id], [aws_route_table.database.id])
  }
}

output "egress_addresses" {
  description = "Public addresses that workers fetch inputs from, for the allow-lists of others."
  value       = [for e in aws_eip.nat : e.public_ip]
}

output "gateway_addresses" {
  description = "Public addresses that clients reach the gateways at, once the cluster's Service has taken them."
  value       = [for z in local.zones : aws_eip.gateway[z].public_ip]
}

output "gateway_service" {
  description = "What the gateways' Service of type LoadBalancer must say to take these addresses."
  value = {
    load_balancer_class = "service.k8s.aws/nlb"
    load_balancer_ip    = null
    annotations = {
      "service.beta.kubernetes.io/aws-load-balancer-scheme"               = "internet-facing"
      "service.beta.kubernetes.io/aws-load-balancer-nlb-target-type"      = "ip"
      "service.beta.kubernetes.io/aws-load-balancer-eip-allocations"      = join(",", [for z in local.zones : aws_eip.gateway[z].id])
      "service.beta.kubernetes.io/aws-load-balancer-subnets"              = join(",", [for z in local.zones : aws_subnet.public[z].id])
      "service.beta.kubernetes.io/aws-load-balancer-attributes"           = "load_balancing.cross_zone.enabled=true"
      "service.beta.kubernetes.io/aws-load-balancer-healthcheck-protocol" = "https"
      "service.beta.kubernetes.io/aws-load-balancer-healthcheck-path"     = "/readyz"
    }
  }
}

output "bucket" {
  description = "The pool's objects: name, URL as the worker's --objects takes it, and region."
  value = {
    name   = aws_s3_bucket.objects.id
    url    = "s3://${aws_s3_bucket.objects.id}"
    region = var.region
  }
}

output "registry" {
  description = "Where images are pushed and pulled: host to log in to, and repository per image."
  value = {
    host         = split("/", aws_ecr_repository.this["gateway"].repository_url)[0]
    repositories = { for n, r in aws_ecr_repository.this : n => r.repository_url }
  }
}

output "identities" {
  description = "Service accounts with an identity in this cloud: namespace, name, the identity, and the annotations that the service account needs for it."
  value = {
    for n, i in local.pod_identities : n => {
      namespace       = i.namespace
      service_account = i.service_account
      identity        = aws_iam_role.pod[n].arn
      annotations     = {}
    }
  }
}

output "peer_identities" {
  description = "What the other clouds' workers assume to use this bucket, by pool name, the audience of the token that they show, and who trusts the issuer."
  value = {
    for n, r in aws_iam_role.peer_worker : n => {
      identity = r.arn
      audience = "sts.amazonaws.com"
      provider = aws_iam_openid_connect_provider.peer[n].arn
    }
  }
}

output "node_scheduling" {
  description = "What manifests select nodes by and tolerate, and the disk that a worker's pod can ask for at most."
  value = {
    gateway_selector   = { (local.role_label) = "gateway" }
    worker_selector    = { (local.role_label) = "worker" }
    worker_taints      = [{ key = local.role_label, value = "worker", effect = "NoSchedule" }]
    worker_pools       = { for n, p in var.worker_pools : n => { arch = p.arch, spot = p.spot, ephemeral_storage = "${local.ephemeral_gib[n]}Gi" } }
    spot_grace_seconds = 120
  }
}

output "secrets" {
  description = "The rooms for secrets, by their short names: what an ExternalSecret refers to."
  value       = { for n, s in aws_secretsmanager_secret.this : n => s.name }
}

output "database" {
  description = "The job store's address without a secret, and where operators find theirs; null when there is none."
  value = var.database == null ? null : {
    host     = aws_db_instance.this[0].address
    port     = aws_db_instance.this[0].port
    name     = local.database_name
    admin    = aws_db_instance.this[0].username
    secret   = aws_db_instance.this[0].master_user_secret[0].secret_arn
    instance = aws_db_instance.this[0].identifier
    ca       = "https://truststore.pki.rds.amazonaws.com/${var.region}/${var.region}-bundle.pem"
    sslmode  = "verify-full"
  }
}
