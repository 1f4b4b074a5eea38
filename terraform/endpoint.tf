# aws.NAME and gcp.NAME are each cloud's gateways, whatever their health; NAME is whichever are healthy, by weight.
# The certificate has all three names. When no cloud is healthy Route 53 answers as if all were.

locals {
  endpoint_zone_id = var.endpoint == null ? null : var.endpoint.zone_id != null ? var.endpoint.zone_id : aws_route53_zone.endpoint[0].zone_id

  endpoint_clouds = var.endpoint == null ? {} : {
    aws = { addresses = module.aws.gateway_addresses, weight = var.endpoint.aws_weight }
    gcp = { addresses = module.gcp.gateway_addresses, weight = var.endpoint.gcp_weight }
  }

  # cert-manager proves by TXT records that the name is ours; external-dns names workers that the other cloud asks.
  dns_writers = var.endpoint == null ? {} : {
    cert-manager = { namespace = "cert-manager", service_account = "cert-manager" }
    external-dns = { namespace = "external-dns", service_account = "external-dns" }
  }
}

resource "aws_route53_zone" "endpoint" {
  #checkov:skip=CKV2_AWS_38:DNSSEC takes a key in us-east-1 and the parent's DS record; turn it on by hand once the delegation stands
  #checkov:skip=CKV2_AWS_39:query logs would keep every client's resolver; nobody reads them here
  count = var.endpoint == null ? 0 : var.endpoint.zone_id == null ? 1 : 0

  name    = var.endpoint.name
  comment = "${var.name}: clients' endpoint"
  # cert-manager and external-dns write records that Terraform does not know.
  force_destroy = !var.protect
  tags          = local.tags
}

resource "aws_route53_record" "cloud" {
  #checkov:skip=CKV2_AWS_23:the addresses are those that the modules made, of both clouds; the scanner looks for AWS resources by name
  for_each = local.endpoint_clouds

  zone_id = local.endpoint_zone_id
  name    = "${each.key}.${var.endpoint.name}"
  type    = "A"
  ttl     = 60
  records = each.value.addresses
}

# A gateway that drains or sees no worker is not ready, so this is more than a listening port.
resource "aws_route53_health_check" "cloud" {
  for_each = local.endpoint_clouds

  type              = "HTTPS"
  fqdn              = aws_route53_record.cloud[each.key].name
  port              = 443
  resource_path     = "/readyz"
  enable_sni        = true
  request_interval  = 30
  failure_threshold = 2
  tags              = merge(local.tags, { Name = "${var.name}-${each.key}" })
}

resource "aws_route53_record" "endpoint" {
  #checkov:skip=CKV2_AWS_23:the addresses are those that the modules made, of both clouds; the scanner looks for AWS resources by name
  for_each = local.endpoint_clouds

  zone_id         = local.endpoint_zone_id
  name            = var.endpoint.name
  type            = "A"
  ttl             = 60
  records         = each.value.addresses
  set_identifier  = each.key
  health_check_id = aws_route53_health_check.cloud[each.key].id

  weighted_routing_policy {
    weight = each.value.weight
  }
}

# One role for each, for EKS by Pod Identity and for GKE by its cluster's tokens: no key of AWS lies in Google.
resource "aws_iam_role" "dns" {
  for_each = local.dns_writers

  name = "${var.name}-${each.key}"
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Effect    = "Allow"
        Action    = ["sts:AssumeRole", "sts:TagSession"]
        Principal = { Service = "pods.eks.amazonaws.com" }
        Condition = { StringEquals = {
          "aws:RequestTag/eks-cluster-name"           = var.name
          "aws:RequestTag/kubernetes-namespace"       = each.value.namespace
          "aws:RequestTag/kubernetes-service-account" = each.value.service_account
        } }
      },
      {
        Effect    = "Allow"
        Action    = "sts:AssumeRoleWithWebIdentity"
        Principal = { Federated = module.aws.peer_identities["gcp"].provider }
        Condition = { StringEquals = {
          "${trimprefix(module.gcp.oidc_issuer, "https://")}:aud" = "sts.amazonaws.com"
          "${trimprefix(module.gcp.oidc_issuer, "https://")}:sub" = "system:serviceaccount:${each.value.namespace}:${each.value.service_account}"
        } }
      },
    ]
  })
  tags = local.tags
}

# Names below the endpoint's own, and in this zone only.
resource "aws_iam_role_policy" "dns" {
  for_each = local.dns_writers

  name = "records"
  role = aws_iam_role.dns[each.key].id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Effect    = "Allow"
        Action    = "route53:ChangeResourceRecordSets"
        Resource  = "arn:aws:route53:::hostedzone/${local.endpoint_zone_id}"
        Condition = { "ForAllValues:StringLike" = { "route53:ChangeResourceRecordSetsNormalizedRecordNames" = ["*.${var.endpoint.name}"] } }
      },
      {
        Effect   = "Allow"
        Action   = ["route53:ListResourceRecordSets", "route53:ListTagsForResource"]
        Resource = "arn:aws:route53:::hostedzone/${local.endpoint_zone_id}"
      },
      {
        Effect   = "Allow"
        Action   = ["route53:ListHostedZones", "route53:ListHostedZonesByName"]
        Resource = "*"
      },
      {
        Effect   = "Allow"
        Action   = "route53:GetChange"
        Resource = "arn:aws:route53:::change/*"
      },
    ]
  })
}

resource "aws_eks_pod_identity_association" "dns" {
  for_each = local.dns_writers

  cluster_name    = module.aws.cluster_name
  namespace       = each.value.namespace
  service_account = each.value.service_account
  role_arn        = aws_iam_role.dns[each.key].arn
  tags            = local.tags
}
