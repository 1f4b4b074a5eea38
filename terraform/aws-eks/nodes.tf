resource "aws_iam_role" "node" {
  name = "${var.name}-${var.region}-node"
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Action    = "sts:AssumeRole"
      Principal = { Service = "ec2.amazonaws.com" }
    }]
  })
  tags = local.tags
}

# Only what a kubelet needs. The network plugin's rights are its own pod's, not the node's.
resource "aws_iam_role_policy_attachment" "node" {
  for_each = toset(["AmazonEKSWorkerNodePolicy", "AmazonEC2ContainerRegistryPullOnly"])

  role       = aws_iam_role.node.name
  policy_arn = "arn:${local.partition}:iam::aws:policy/${each.value}"
}

locals {
  ami_types = { amd64 = "AL2023_x86_64_STANDARD", arm64 = "AL2023_ARM_64_STANDARD" }

  # What a worker's pod asks for, in k8s/base/worker.yaml.
  worker_scratch_gib = 38

  # Disk that pods can have: what the image and its logs need is left out.
  ephemeral_gib = { for n, p in var.worker_pools : n => p.disk_gb - 20 }
}

# What reaches nodes and their pods from outside of the cluster, beside the group that EKS keeps for the inside.
resource "aws_security_group" "node" {
  name_prefix = "${var.name}-node-"
  description = "Nodes: what comes from outside of the cluster"
  vpc_id      = aws_vpc.this.id
  tags        = merge(local.tags, { Name = "${var.name}-node" })

  lifecycle {
    create_before_destroy = true
  }
}

# The gateways of the other clouds ask workers directly; a pod's address is the network's.
resource "aws_vpc_security_group_ingress_rule" "peer_to_workers" {
  for_each = toset(var.peer_cidrs)

  security_group_id = aws_security_group.node.id
  description       = "Gateways of the other clouds to workers"
  cidr_ipv4         = each.value
  ip_protocol       = "tcp"
  from_port         = local.worker_port
  to_port           = local.worker_port
  tags              = local.tags
}

resource "aws_launch_template" "node" {
  for_each = merge({ gateway = var.gateway_nodes.disk_gb }, { for n, p in var.worker_pools : n => p.disk_gb })

  name                   = "${var.name}-${each.key}"
  update_default_version = true
  # EKS gives a template its own group only when it names none.
  vpc_security_group_ids = compact([aws_eks_cluster.this.vpc_config[0].cluster_security_group_id, aws_security_group.node.id])

  block_device_mappings {
    device_name = "/dev/xvda"
    ebs {
      volume_size           = each.value
      volume_type           = "gp3"
      encrypted             = true
      delete_on_termination = true
    }
  }

  # A hop limit of 1 keeps pods from the node's own credentials.
  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  dynamic "tag_specifications" {
    for_each = ["instance", "volume", "network-interface"]
    content {
      resource_type = tag_specifications.value
      tags          = merge(local.tags, { Name = "${var.name}-${each.key}" })
    }
  }
}

resource "aws_eks_node_group" "gateway" {
  cluster_name    = aws_eks_cluster.this.name
  node_group_name = "gateway"
  node_role_arn   = aws_iam_role.node.arn
  subnet_ids      = [for s in aws_subnet.private : s.id]
  version         = var.kubernetes_version
  ami_type        = local.ami_types[var.gateway_nodes.arch]
  capacity_type   = "ON_DEMAND"
  instance_types  = var.gateway_nodes.machine_types
  labels          = { (local.role_label) = "gateway" }

  launch_template {
    id      = aws_launch_template.node["gateway"].id
    version = aws_launch_template.node["gateway"].latest_version
  }

  scaling_config {
    min_size     = var.gateway_nodes.min
    max_size     = var.gateway_nodes.max
    desired_size = var.gateway_nodes.min
  }

  update_config {
    max_unavailable = 1
  }

  tags = local.tags

  # The autoscaler's to change.
  lifecycle {
    ignore_changes = [scaling_config[0].desired_size]
  }

  depends_on = [aws_eks_addon.first, aws_iam_role_policy_attachment.node, aws_route.private_internet]
}

resource "aws_eks_node_group" "worker" {
  for_each = var.worker_pools

  cluster_name    = aws_eks_cluster.this.name
  node_group_name = each.key
  node_role_arn   = aws_iam_role.node.arn
  subnet_ids      = [for s in aws_subnet.private : s.id]
  version         = var.kubernetes_version
  ami_type        = local.ami_types[each.value.arch]
  capacity_type   = each.value.spot ? "SPOT" : "ON_DEMAND"
  instance_types  = each.value.machine_types
  labels = {
    (local.role_label)   = "worker"
    "millrace.dev/nodes" = each.key
    "millrace.dev/spot"  = tostring(each.value.spot)
  }

  launch_template {
    id      = aws_launch_template.node[each.key].id
    version = aws_launch_template.node[each.key].latest_version
  }

  taint {
    key    = local.role_label
    value  = "worker"
    effect = "NO_SCHEDULE"
  }

  scaling_config {
    min_size     = each.value.min
    max_size     = each.value.max
    desired_size = each.value.min
  }

  update_config {
    max_unavailable_percentage = 33
  }

  # The autoscaler has no node to look at while a pool is empty. It learns labels and taints by eks:DescribeNodegroup,
  # but of the disk only by this tag: without it a pod that asks for ephemeral storage never starts the first node.
  tags = merge(local.tags, {
    "k8s.io/cluster-autoscaler/node-template/resources/ephemeral-storage" = "${local.ephemeral_gib[each.key]}Gi"
  })

  lifecycle {
    ignore_changes = [scaling_config[0].desired_size]
  }

  depends_on = [aws_eks_addon.first, aws_iam_role_policy_attachment.node, aws_route.private_internet]
}
