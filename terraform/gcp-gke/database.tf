# The job store, if Google is to hold it. It survives its processes and disks and, with high_availability, its zone. It
# does not survive this cloud or region: for `durability = "dual"` the store must be a quorum across clouds or have a
# synchronous standby in another one, which Cloud SQL cannot be part of.
#
# Reached by Private Service Connect: an address of our own network, which VPNs reach like any other. A peering with
# Google's network would need its routes passed on, and cannot be taken down for days after the instance is gone.

locals {
  database_name = "millrace"
}

resource "google_sql_database_instance" "this" {
  #checkov:skip=CKV_GCP_6:TLS is forced (ENCRYPTED_ONLY); client certificates would be secrets with an end, in the state, beside passwords that are needed anyway
  #checkov:skip=CKV_GCP_108:a lookup of the name at each connection, of addresses that have none
  #checkov:skip=CKV_GCP_79:the major version is the operator's choice; a new one is a decision of the store's, not of the scanner's
  count = var.database == null ? 0 : 1

  project          = var.account
  region           = var.region
  name             = "${var.name}-${var.generation}"
  database_version = "POSTGRES_${var.database.version}"
  # Terraform's own refusal; the API's is below.
  deletion_protection = var.protect

  settings {
    tier                        = var.database.machine_type
    edition                     = startswith(var.database.machine_type, "db-perf-optimized-") ? "ENTERPRISE_PLUS" : "ENTERPRISE"
    availability_type           = var.database.high_availability ? "REGIONAL" : "ZONAL"
    disk_type                   = "PD_SSD"
    disk_size                   = var.database.storage_gb
    disk_autoresize             = true
    disk_autoresize_limit       = var.database.storage_max_gb
    deletion_protection_enabled = var.protect
    retain_backups_on_delete    = var.protect
    user_labels                 = local.labels

    ip_configuration {
      ipv4_enabled   = false
      ssl_mode       = "ENCRYPTED_ONLY"
      server_ca_mode = "GOOGLE_MANAGED_INTERNAL_CA"

      psc_config {
        psc_enabled               = true
        allowed_consumer_projects = [var.account]
      }
    }

    backup_configuration {
      enabled                        = true
      point_in_time_recovery_enabled = true
      start_time                     = "02:00"
      location                       = var.region
      transaction_log_retention_days = min(7, var.database.backup_days)

      backup_retention_settings {
        retained_backups = var.database.backup_days
      }
    }

    maintenance_window {
      day          = 7
      hour         = 3
      update_track = "stable"
    }

    insights_config {
      query_insights_enabled  = true
      query_string_length     = 1024
      record_application_tags = false
      record_client_address   = false
    }

    password_validation_policy {
      enable_password_policy      = true
      min_length                  = 20
      complexity                  = "COMPLEXITY_DEFAULT"
      disallow_username_substring = true
    }

    database_flags {
      name  = "cloudsql.iam_authentication"
      value = "on"
    }
    database_flags {
      name  = "cloudsql.enable_pgaudit"
      value = "on"
    }
    database_flags {
      name  = "log_checkpoints"
      value = "on"
    }
    database_flags {
      name  = "log_connections"
      value = "on"
    }
    database_flags {
      name  = "log_disconnections"
      value = "on"
    }
    database_flags {
      name  = "log_lock_waits"
      value = "on"
    }
    database_flags {
      name  = "log_temp_files"
      value = "0"
    }
    # DDL and no durations: both would carry clients' URLs into the log. Query Insights has them.
    database_flags {
      name  = "log_statement"
      value = "ddl"
    }
    database_flags {
      name  = "log_min_duration_statement"
      value = "-1"
    }
    database_flags {
      name  = "log_min_messages"
      value = "error"
    }
    database_flags {
      name  = "log_min_error_statement"
      value = "error"
    }
    # A worker that was stopped in mid-transaction must not hold the others up; the worker sets the same by session.
    database_flags {
      name  = "idle_in_transaction_session_timeout"
      value = "10000"
    }
  }

  # What autoresize has grown is not to be shrunk.
  lifecycle {
    ignore_changes = [settings[0].disk_size]
  }

  depends_on = [google_project_service.this]
}

resource "google_sql_database" "this" {
  count = var.database == null ? 0 : 1

  project  = var.account
  instance = google_sql_database_instance.this[0].name
  name     = local.database_name
  # Roles that an operator made own what is in it, and would keep it from going: it goes with the instance.
  deletion_policy = "ABANDON"
}

resource "google_compute_address" "database" {
  count = var.database == null ? 0 : 1

  project      = var.account
  region       = var.region
  name         = "${var.name}-database"
  subnetwork   = google_compute_subnetwork.nodes.id
  address_type = "INTERNAL"
  labels       = local.labels
}

resource "google_compute_forwarding_rule" "database" {
  count = var.database == null ? 0 : 1

  project                 = var.account
  region                  = var.region
  name                    = "${var.name}-database"
  network                 = google_compute_network.this.id
  subnetwork              = google_compute_subnetwork.nodes.id
  ip_address              = google_compute_address.database[0].self_link
  load_balancing_scheme   = ""
  target                  = google_sql_database_instance.this[0].psc_service_attachment_link
  allow_psc_global_access = false
  labels                  = local.labels
}
