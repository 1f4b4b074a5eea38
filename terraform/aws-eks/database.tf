# The job store, if AWS is to hold it. It survives its processes and disks and, with high_availability, its zone. It
# does not survive this cloud or region: for `durability = "dual"` the store must be a quorum across clouds or have a
# synchronous standby in another one, which RDS cannot be part of.

locals {
  database_name = "millrace"
  # The family of the engine's major version names the parameter group, too: both change together.
  database_family = var.database == null ? null : "postgres${var.database.version}"
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

resource "aws_db_parameter_group" "this" {
  count = var.database == null ? 0 : 1

  name_prefix = "${var.name}-${local.database_family}-"
  family      = local.database_family
  description = "Job store of ${var.name}"
  tags        = local.tags

  parameter {
    name  = "rds.force_ssl"
    value = "1"
  }
  parameter {
    name  = "log_min_duration_statement"
    value = "1000"
  }
  # Slow statements without what was filled in, and of the others DDL only: clients' URLs do not belong into a log.
  parameter {
    name  = "log_parameter_max_length"
    value = "0"
  }
  parameter {
    name  = "log_statement"
    value = "ddl"
  }
  # A worker that was stopped in mid-transaction must not hold the others up; the worker sets the same by session.
  parameter {
    name  = "idle_in_transaction_session_timeout"
    value = "10000"
  }

  lifecycle {
    create_before_destroy = true
  }
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
  parameter_group_name   = aws_db_parameter_group.this[0].name
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

  performance_insights_enabled    = true
  performance_insights_kms_key_id = aws_kms_key.data.arn
  monitoring_interval             = 60
  monitoring_role_arn             = aws_iam_role.database_monitoring[0].arn
  enabled_cloudwatch_logs_exports = ["postgresql", "upgrade"]

  tags = local.tags

  depends_on = [aws_cloudwatch_log_group.database, aws_iam_role_policy_attachment.database_monitoring]
}
