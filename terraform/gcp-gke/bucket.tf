# Inputs under uploads/, outputs under jobs/. The deployment removes what its jobs' retention says; the rules here are
# the net below it, and take what no job knows of: halves of uploads and what was deleted or overwritten.
resource "google_storage_bucket" "objects" {
  #checkov:skip=CKV_GCP_62:access logs would double the requests of media; Cloud Audit Logs' data access is the project's choice
  project                     = var.account
  name                        = "${var.name}-${local.project_number}-${var.region}"
  location                    = upper(var.region)
  storage_class               = "STANDARD"
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  force_destroy               = !var.protect
  labels                      = local.labels

  versioning {
    enabled = true
  }

  # Versions are what brings a deletion back; soft deletion beside them would be paid for twice.
  soft_delete_policy {
    retention_duration_seconds = 0
  }

  encryption {
    default_kms_key_name = google_kms_crypto_key.data.id
  }

  lifecycle_rule {
    action {
      type = "AbortIncompleteMultipartUpload"
    }
    condition {
      age = 2
    }
  }

  lifecycle_rule {
    action {
      type = "Delete"
    }
    condition {
      age            = var.upload_retention_days
      matches_prefix = ["uploads/"]
    }
  }

  lifecycle_rule {
    action {
      type = "Delete"
    }
    condition {
      days_since_noncurrent_time = var.noncurrent_days
      with_state                 = "ARCHIVED"
    }
  }

  dynamic "cors" {
    for_each = length(var.browser_origins) > 0 ? [var.browser_origins] : []
    content {
      origin = cors.value
      method = ["GET", "HEAD", "PUT"]
      # What a page may send as well as read; a resumable upload has to read the parts' ETags.
      response_header = ["Content-Type", "Content-MD5", "Content-Range", "Range", "ETag", "Accept-Ranges", "Content-Length"]
      max_age_seconds = 3600
    }
  }

  depends_on = [google_kms_crypto_key_iam_member.bucket]
}
