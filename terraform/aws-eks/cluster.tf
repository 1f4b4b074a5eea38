resource "aws_cloudwatch_log_group" "cluster" {
  # EKS writes to this name and would make the group itself, without an end and without our key.
  name              = "/aws/eks/${var.name}/cluster"
  retention_in_days = var.log_retention_days
  kms_key_id        = aws_kms_key.platform.arn
  tags              = local.tags
}

resource "aws_iam_role" "cluster" {
  name = "${var.name}-${var.region}-cluster"
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Action    = ["sts:AssumeRole", "sts:TagSession"]
      Principal = { Service = "eks.amazonaws.com" }
    }]
  })
  tags = local.tags
}

resource "aws_iam_role_policy_attachment" "cluster" {
  role       = aws_iam_role.cluster.name
  policy_arn = "arn:${local.partition}:iam::aws:policy/AmazonEKSClusterPolicy"
}

resource "aws_eks_cluster" "this" {
  #checkov:skip=CKV_AWS_39:the public endpoint exists only when control_plane_cidrs names networks, and for those only
  #checkov:skip=CKV_AWS_38:control_plane_cidrs refuses anything wider than /8
  name     = var.name
  version  = var.kubernetes_version
  role_arn = aws_iam_role.cluster.arn

  enabled_cluster_log_types = ["api", "audit", "authenticator", "controllerManager", "scheduler"]
  # The add-ons below are the only ones; the unmanaged copies that EKS would put in first are in their way.
  bootstrap_self_managed_addons = false

  vpc_config {
    subnet_ids              = [for s in aws_subnet.private : s.id]
    endpoint_private_access = true
    endpoint_public_access  = length(var.control_plane_cidrs) > 0
    public_access_cidrs     = length(var.control_plane_cidrs) > 0 ? var.control_plane_cidrs : null
  }

  kubernetes_network_config {
    service_ipv4_cidr = "172.20.0.0/16"
  }

  access_config {
    # Access is by access entries alone: no ConfigMap that locks everybody out when it is mistyped, and no admin whom
    # nobody sees because he happened to apply first.
    authentication_mode                         = "API"
    bootstrap_cluster_creator_admin_permissions = false
  }

  encryption_config {
    resources = ["secrets"]
    provider {
      key_arn = aws_kms_key.platform.arn
    }
  }

  # At the end of standard support EKS upgrades by itself rather than charge six times as much.
  upgrade_policy {
    support_type = "STANDARD"
  }

  tags = local.tags

  depends_on = [aws_iam_role_policy_attachment.cluster, aws_cloudwatch_log_group.cluster]

  timeouts {
    delete = "30m"
  }
}

resource "aws_eks_access_entry" "admin" {
  for_each = toset(var.cluster_admins)

  cluster_name  = aws_eks_cluster.this.name
  principal_arn = each.value
  tags          = local.tags
}

resource "aws_eks_access_policy_association" "admin" {
  for_each = toset(var.cluster_admins)

  cluster_name  = aws_eks_cluster.this.name
  principal_arn = aws_eks_access_entry.admin[each.value].principal_arn
  policy_arn    = "arn:${local.partition}:eks::aws:cluster-access-policy/AmazonEKSClusterAdminPolicy"

  access_scope {
    type = "cluster"
  }
}

# Their versions are EKS's defaults for the cluster's version, at creation; `aws eks update-addon` raises them.
# These come before nodes: without a network plugin no node gets ready, and the plugin's rights come by the agent.
resource "aws_eks_addon" "first" {
  for_each = {
    eks-pod-identity-agent = null
    kube-proxy             = null
    vpc-cni = jsonencode({
      # NetworkPolicies are not enforced on EKS unless asked for.
      enableNetworkPolicy = "true"
      # Nodes are private, so NAT gateways translate for the internet. The plugin's own translation would also hide
      # pods from the other cloud, and break connections that come from there.
      env = { AWS_VPC_K8S_CNI_EXTERNALSNAT = "true" }
    })
  }

  cluster_name                = aws_eks_cluster.this.name
  addon_name                  = each.key
  configuration_values        = each.value
  resolve_conflicts_on_create = "OVERWRITE"
  resolve_conflicts_on_update = "PRESERVE"
  tags                        = local.tags

  depends_on = [aws_eks_pod_identity_association.platform]
}

# These need nodes to get ready, and the gateways' are the only ones without a taint.
resource "aws_eks_addon" "later" {
  for_each = toset(["aws-ebs-csi-driver", "coredns", "metrics-server"])

  cluster_name                = aws_eks_cluster.this.name
  addon_name                  = each.value
  resolve_conflicts_on_create = "OVERWRITE"
  resolve_conflicts_on_update = "PRESERVE"
  tags                        = local.tags

  depends_on = [aws_eks_node_group.gateway, aws_eks_pod_identity_association.platform]
}
