# Two keys: `platform` for the cluster's secrets and logs, `data` for what clients and operators entrust to the
# deployment. Nodes' disks use the account's own EBS key: a key of ours would need the autoscaling service's role in
# its policy, which a fresh account does not have yet, and AWS refuses a policy that names nobody.

locals {
  # IAM decides who may use a key; without this statement nobody could ever change its policy again.
  key_admin_statement = {
    Sid       = "IamDecides"
    Effect    = "Allow"
    Principal = { AWS = "arn:${local.partition}:iam::${local.account}:root" }
    Action    = "kms:*"
    Resource  = "*"
  }
}

resource "aws_kms_key" "platform" {
  description             = "${var.name}: secrets of the cluster, logs"
  enable_key_rotation     = true
  deletion_window_in_days = var.protect ? 30 : 7
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [local.key_admin_statement, {
      Sid       = "LogsEncrypt"
      Effect    = "Allow"
      Principal = { Service = "logs.${var.region}.amazonaws.com" }
      Action    = ["kms:Encrypt*", "kms:Decrypt*", "kms:ReEncrypt*", "kms:GenerateDataKey*", "kms:Describe*"]
      Resource  = "*"
      Condition = { ArnLike = { "kms:EncryptionContext:aws:logs:arn" = [
        "arn:${local.partition}:logs:${var.region}:${local.account}:log-group:/millrace/${var.name}/*",
        "arn:${local.partition}:logs:${var.region}:${local.account}:log-group:/aws/eks/${var.name}/*",
        "arn:${local.partition}:logs:${var.region}:${local.account}:log-group:/aws/rds/instance/${var.name}-*",
      ] } }
    }]
  })
  tags = merge(local.tags, { Name = "${var.name}-platform" })

  depends_on = [terraform_data.place]
}

resource "aws_kms_key" "data" {
  description             = "${var.name}: objects, job store, operators' secrets, images"
  enable_key_rotation     = true
  deletion_window_in_days = var.protect ? 30 : 7
  policy                  = jsonencode({ Version = "2012-10-17", Statement = [local.key_admin_statement] })
  tags                    = merge(local.tags, { Name = "${var.name}-data" })

  depends_on = [terraform_data.place]
}

resource "aws_kms_alias" "platform" {
  name          = "alias/${var.name}-platform"
  target_key_id = aws_kms_key.platform.key_id
}

resource "aws_kms_alias" "data" {
  name          = "alias/${var.name}-data"
  target_key_id = aws_kms_key.data.key_id
}
