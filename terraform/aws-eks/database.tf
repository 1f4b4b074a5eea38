# The job store, if AWS is to hold it. It survives its processes and disks and, with high_availability, its zone. It
# does not survive this cloud or region: for `durability = "dual"` the store must be a quorum across clouds or have a
# synchronous standby in another one, which RDS cannot be part of.
#
# The engine's default parameters are what we want: TLS is forced from Postgres 15 on, statements (which hold clients'
# URLs) are not logged, and the workers set their own timeouts by session.

locals {
  database_name = "millrace"
}

resource "aws_db_subnet_group" "this" {
  count = var.database == null ? 0 : 1

  name       = "${var.name}-${var.generation}"
  subnet_ids = [for s in aws_subnet.database : s.id]
  tags       = local.tags
}

resource "aws_security_group" "database" {
  count = var.database == null ? 0 : 1

  name_prefix = "${var.name}-database-"
  description = "Job store: workers of this cluster and of the peers"
  vpc_id      = aws_vpc.this.id
  tags        = merge(local.tags, { Name = "${var.name}-database" })

  lifecycle {
    create_before_destroy = true
  }
}

# Pods have addresses of the private subnets, where nothing but nodes is.
resource "aws_vpc_security_group_ingress_rule" "database" {
  for_each = var.database == null ? [] : toset(concat([for i, _ in local.zones : cidrsubnet(var.network_cidr, 2, i)], var.peer_cidrs))

  security_group_id = aws_security_group.database[0].id
  description       = "Workers"
  cidr_ipv4         = each.value
  ip_protocol       = "tcp"
  from_port         = 5432
  to_port           = 5432
  tags              = local.tags
}

resource "aws_iam_role" "database_monitoring" {
  count = var.database == null ? 0 : 1

  name = "${var.name}-${var.region}-rds-monitoring"
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Action    = "sts:AssumeRole"
      Principal = { Service = "monitoring.rds.amazonaws.com" }
      Condition = { StringEquals = { "aws:SourceAccount" = local.account } }
    }]
  })
  tags = local.tags
}

resource "aws_iam_role_policy_attachment" "database_monitoring" {
  count = var.database == null ? 0 : 1

  role       = aws_iam_role.database_monitoring[0].name
  policy_arn = "arn:${local.partition}:iam::aws:policy/service-role/AmazonRDSEnhancedMonitoringRole"
}

# RDS would make these itself, without an end.
resource "aws_cloudwatch_log_group" "database" {
  for_each = var.database == null ? [] : toset(["postgresql", "upgrade"])

  name              = "/aws/rds/instance/${var.name}-${var.generation}/${each.value}"
  retention_in_days = var.log_retention_days
  kms_key_id        = aws_kms_key.platform.arn
  tags              = local.tags
}

resource "aws_db_instance" "this" {
  #checkov:skip=CKV_AWS_293:protect turns deletion protection on, and it is on unless said otherwise
  #checkov:skip=CKV_AWS_353:Performance Insights gave way to Database Insights, whose standard mode is on without being asked
  #checkov:skip=CKV2_AWS_30:statements would carry clients' URLs into the log
  #checkov:skip=CKV2_AWS_69:the default parameters of Postgres 15 and later force TLS, and the workers verify
  #checkov:skip=CKV_AWS_157:high_availability, on unless said otherwise
  count = var.database == null ? 0 : 1

  identifier     = "${var.name}-${var.generation}"
  engine         = "postgres"
  engine_version = var.database.version
  instance_class = var.database.machine_type
  multi_az       = var.database.high_availability

  db_name  = local.database_name
  username = "millrace_admin"
  # RDS makes the password, keeps it in Secrets Manager and changes it every week. It is for operators; the workers'
  # own role is made by one (docs/deploy.md), so that the change never meets a running job.
  manage_master_user_password         = true
  master_user_secret_kms_key_id       = aws_kms_key.data.arn
  iam_database_authentication_enabled = true

  storage_type          = "gp3"
  allocated_storage     = var.database.storage_gb
  max_allocated_storage = var.database.storage_max_gb
  storage_encrypted     = true
  kms_key_id            = aws_kms_key.data.arn

  db_subnet_group_name   = aws_db_subnet_group.this[0].name
  vpc_security_group_ids = [aws_security_group.database[0].id]
  publicly_accessible    = false
  ca_cert_identifier     = "rds-ca-rsa2048-g1"

  backup_retention_period   = var.database.backup_days
  backup_window             = "02:00-03:00"
  maintenance_window        = "sun:03:30-sun:04:30"
  copy_tags_to_snapshot     = true
  delete_automated_backups  = !var.protect
  deletion_protection       = var.protect
  skip_final_snapshot       = !var.protect
  final_snapshot_identifier = "${var.name}-${var.generation}-final"

  # Minor versions come by themselves in the window; a major one when `version` is raised and applied.
  auto_minor_version_upgrade  = true
  allow_major_version_upgrade = true

  monitoring_interval             = 60
  monitoring_role_arn             = aws_iam_role.database_monitoring[0].arn
  enabled_cloudwatch_logs_exports = ["postgresql", "upgrade"]

  tags = local.tags

  depends_on = [aws_cloudwatch_log_group.database, aws_iam_role_policy_attachment.database_monitoring]
}
