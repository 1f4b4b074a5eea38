# Who may do what, by Pod Identity: a service account's pods get a role's credentials from the node's agent, for hours,
# without a key and without an annotation, so that manifests name no account. Gateways have no identity: they ask
# workers, and nothing of AWS.

locals {
  objects_statements = [
    {
      Sid      = "Objects"
      Effect   = "Allow"
      Action   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"]
      Resource = ["${aws_s3_bucket.objects.arn}/uploads/*", "${aws_s3_bucket.objects.arn}/jobs/*"]
    },
    {
      Sid       = "Names"
      Effect    = "Allow"
      Action    = "s3:ListBucket"
      Resource  = aws_s3_bucket.objects.arn
      Condition = { StringLike = { "s3:prefix" = ["uploads/*", "jobs/*"] } }
    },
    {
      Sid       = "Key"
      Effect    = "Allow"
      Action    = ["kms:Decrypt", "kms:GenerateDataKey"]
      Resource  = aws_kms_key.data.arn
      Condition = { StringEquals = { "kms:ViaService" = "s3.${var.region}.amazonaws.com" } }
    },
  ]

  # namespace/service account and either AWS's own policy for it or statements.
  pod_identities = {
    worker = {
      namespace  = var.namespace, service_account = "worker", managed = null
      statements = local.objects_statements
    }
    external-secrets = {
      namespace = "external-secrets", service_account = "external-secrets", managed = null
      statements = [
        {
          Sid      = "Secrets"
          Effect   = "Allow"
          Action   = ["secretsmanager:GetSecretValue", "secretsmanager:DescribeSecret"]
          Resource = [for s in aws_secretsmanager_secret.this : s.arn]
        },
        {
          Sid       = "Key"
          Effect    = "Allow"
          Action    = "kms:Decrypt"
          Resource  = aws_kms_key.data.arn
          Condition = { StringEquals = { "kms:ViaService" = "secretsmanager.${var.region}.amazonaws.com" } }
        },
      ]
    }
    cluster-autoscaler = {
      namespace = "kube-system", service_account = "cluster-autoscaler", managed = null
      statements = [
        {
          Sid    = "Look"
          Effect = "Allow"
          Action = [
            "autoscaling:DescribeAutoScalingGroups", "autoscaling:DescribeAutoScalingInstances",
            "autoscaling:DescribeLaunchConfigurations", "autoscaling:DescribeScalingActivities",
            "autoscaling:DescribeTags", "ec2:DescribeImages", "ec2:DescribeInstanceTypes",
            "ec2:DescribeLaunchTemplateVersions", "ec2:GetInstanceTypesFromInstanceRequirements",
          ]
          Resource = "*"
        },
        {
          Sid      = "LookAtNodeGroups"
          Effect   = "Allow"
          Action   = "eks:DescribeNodegroup"
          Resource = "arn:${local.partition}:eks:${var.region}:${local.account}:nodegroup/${var.name}/*"
        },
        {
          # EKS sets this tag on the groups of its node groups by itself.
          Sid       = "ScaleOwnGroups"
          Effect    = "Allow"
          Action    = ["autoscaling:SetDesiredCapacity", "autoscaling:TerminateInstanceInAutoScalingGroup"]
          Resource  = "*"
          Condition = { StringEquals = { "aws:ResourceTag/k8s.io/cluster-autoscaler/${var.name}" = "owned" } }
        },
      ]
    }
    load-balancer = {
      namespace  = "kube-system", service_account = "aws-load-balancer-controller", managed = null
      statements = local.load_balancer_statements
    }
    network = {
      namespace = "kube-system", service_account = "aws-node", managed = "AmazonEKS_CNI_Policy", statements = []
    }
    disks = {
      namespace  = "kube-system", service_account = "ebs-csi-controller-sa"
      managed    = "service-role/AmazonEBSCSIDriverPolicy"
      statements = []
    }
  }

  # What the AWS Load Balancer Controller needs for network load balancers alone: it is installed with its web firewall,
  # shield and ALB features off.
  load_balancer_statements = [
    {
      Sid    = "Look"
      Effect = "Allow"
      Action = [
        "ec2:DescribeAccountAttributes", "ec2:DescribeAddresses", "ec2:DescribeAvailabilityZones",
        "ec2:DescribeCoipPools", "ec2:DescribeInstances", "ec2:DescribeInternetGateways",
        "ec2:DescribeIpamPools", "ec2:DescribeNetworkInterfaces", "ec2:DescribeRouteTables",
        "ec2:DescribeSecurityGroups", "ec2:DescribeSubnets", "ec2:DescribeTags", "ec2:DescribeVpcPeeringConnections",
        "ec2:DescribeVpcs", "ec2:GetCoipPoolUsage", "ec2:GetSecurityGroupsForVpc",
        "elasticloadbalancing:DescribeCapacityReservation", "elasticloadbalancing:DescribeListenerAttributes",
        "elasticloadbalancing:DescribeListenerCertificates", "elasticloadbalancing:DescribeListeners",
        "elasticloadbalancing:DescribeLoadBalancerAttributes", "elasticloadbalancing:DescribeLoadBalancers",
        "elasticloadbalancing:DescribeRules", "elasticloadbalancing:DescribeSSLPolicies",
        "elasticloadbalancing:DescribeTags", "elasticloadbalancing:DescribeTargetGroupAttributes",
        "elasticloadbalancing:DescribeTargetGroups", "elasticloadbalancing:DescribeTargetHealth",
        "elasticloadbalancing:DescribeTrustStores",
      ]
      Resource = "*"
    },
    {
      Sid       = "LinkedRole"
      Effect    = "Allow"
      Action    = "iam:CreateServiceLinkedRole"
      Resource  = "arn:${local.partition}:iam::${local.account}:role/aws-service-role/elasticloadbalancing.amazonaws.com/*"
      Condition = { StringEquals = { "iam:AWSServiceName" = "elasticloadbalancing.amazonaws.com" } }
    },
    {
      Sid      = "OpenTheNetworksGroups"
      Effect   = "Allow"
      Action   = ["ec2:AuthorizeSecurityGroupIngress", "ec2:RevokeSecurityGroupIngress"]
      Resource = "arn:${local.partition}:ec2:${var.region}:${local.account}:security-group/*"
      Condition = { ArnEquals = {
        "ec2:Vpc" = "arn:${local.partition}:ec2:${var.region}:${local.account}:vpc/${aws_vpc.this.id}"
      } }
    },
    {
      Sid    = "MakeGroups"
      Effect = "Allow"
      Action = "ec2:CreateSecurityGroup"
      Resource = [
        "arn:${local.partition}:ec2:${var.region}:${local.account}:vpc/${aws_vpc.this.id}",
        "arn:${local.partition}:ec2:${var.region}:${local.account}:security-group/*",
      ]
    },
    {
      Sid       = "TagNewGroups"
      Effect    = "Allow"
      Action    = "ec2:CreateTags"
      Resource  = "arn:${local.partition}:ec2:${var.region}:${local.account}:security-group/*"
      Condition = { StringEquals = { "ec2:CreateAction" = "CreateSecurityGroup" } }
    },
    {
      Sid       = "OwnGroups"
      Effect    = "Allow"
      Action    = ["ec2:CreateTags", "ec2:DeleteTags", "ec2:DeleteSecurityGroup"]
      Resource  = "arn:${local.partition}:ec2:${var.region}:${local.account}:security-group/*"
      Condition = { StringEquals = { "aws:ResourceTag/elbv2.k8s.aws/cluster" = var.name } }
    },
    {
      Sid       = "MakeBalancers"
      Effect    = "Allow"
      Action    = ["elasticloadbalancing:CreateLoadBalancer", "elasticloadbalancing:CreateTargetGroup"]
      Resource  = "*"
      Condition = { StringEquals = { "aws:RequestTag/elbv2.k8s.aws/cluster" = var.name } }
    },
    {
      Sid    = "TagNewBalancers"
      Effect = "Allow"
      Action = "elasticloadbalancing:AddTags"
      Resource = [for kind in ["loadbalancer/net/*", "targetgroup/*", "listener/net/*"] :
      "arn:${local.partition}:elasticloadbalancing:${var.region}:${local.account}:${kind}"]
      Condition = { StringEquals = { "elasticloadbalancing:CreateAction" = ["CreateLoadBalancer", "CreateTargetGroup", "CreateListener"] } }
    },
    {
      Sid    = "OwnBalancers"
      Effect = "Allow"
      Action = [
        "elasticloadbalancing:AddTags", "elasticloadbalancing:CreateListener",
        "elasticloadbalancing:DeleteListener", "elasticloadbalancing:DeleteLoadBalancer",
        "elasticloadbalancing:DeleteTargetGroup", "elasticloadbalancing:DeregisterTargets",
        "elasticloadbalancing:ModifyListener", "elasticloadbalancing:ModifyListenerAttributes",
        "elasticloadbalancing:ModifyLoadBalancerAttributes", "elasticloadbalancing:ModifyTargetGroup",
        "elasticloadbalancing:ModifyTargetGroupAttributes", "elasticloadbalancing:RegisterTargets",
        "elasticloadbalancing:RemoveTags", "elasticloadbalancing:SetIpAddressType",
        "elasticloadbalancing:SetSecurityGroups", "elasticloadbalancing:SetSubnets",
      ]
      Resource  = "*"
      Condition = { StringEquals = { "aws:ResourceTag/elbv2.k8s.aws/cluster" = var.name } }
    },
  ]
}

resource "aws_iam_role" "pod" {
  for_each = local.pod_identities

  name = "${var.name}-${var.region}-${each.key}"
  # The agent tags each session with where it is from; a role is for its own service account in this cluster only.
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Action    = ["sts:AssumeRole", "sts:TagSession"]
      Principal = { Service = "pods.eks.amazonaws.com" }
      Condition = { StringEquals = {
        "aws:RequestTag/eks-cluster-name"           = var.name
        "aws:RequestTag/kubernetes-namespace"       = each.value.namespace
        "aws:RequestTag/kubernetes-service-account" = each.value.service_account
      } }
    }]
  })
  tags = local.tags
}

resource "aws_iam_role_policy" "pod" {
  for_each = { for n, i in local.pod_identities : n => i if i.managed == null }

  name   = each.key
  role   = aws_iam_role.pod[each.key].id
  policy = jsonencode({ Version = "2012-10-17", Statement = each.value.statements })
}

resource "aws_iam_role_policy_attachment" "pod" {
  for_each = { for n, i in local.pod_identities : n => i if i.managed != null }

  role       = aws_iam_role.pod[each.key].name
  policy_arn = "arn:${local.partition}:iam::aws:policy/${each.value.managed}"
}

resource "aws_eks_pod_identity_association" "platform" {
  for_each = local.pod_identities

  cluster_name    = aws_eks_cluster.this.name
  namespace       = each.value.namespace
  service_account = each.value.service_account
  role_arn        = aws_iam_role.pod[each.key].arn
  tags            = local.tags
}

# Workers of the other clouds, by their own clusters' tokens: a pod there mounts a token for the audience
# sts.amazonaws.com and names this role. AWS asks the issuer for its keys by itself.
resource "aws_iam_openid_connect_provider" "peer" {
  for_each = var.peer_oidc_issuers

  url            = each.value
  client_id_list = ["sts.amazonaws.com"]
  tags           = local.tags
}

resource "aws_iam_role" "peer_worker" {
  for_each = var.peer_oidc_issuers

  name = "${var.name}-${var.region}-peer-${each.key}"
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Action    = "sts:AssumeRoleWithWebIdentity"
      Principal = { Federated = aws_iam_openid_connect_provider.peer[each.key].arn }
      Condition = { StringEquals = {
        "${trimprefix(each.value, "https://")}:aud" = "sts.amazonaws.com"
        "${trimprefix(each.value, "https://")}:sub" = "system:serviceaccount:${var.namespace}:worker"
      } }
    }]
  })
  tags = local.tags
}

resource "aws_iam_role_policy" "peer_worker" {
  for_each = var.peer_oidc_issuers

  name   = "objects"
  role   = aws_iam_role.peer_worker[each.key].id
  policy = jsonencode({ Version = "2012-10-17", Statement = local.objects_statements })
}
