# Room for secrets, without a value: an operator puts it in (`gcloud secrets versions add`), External Secrets brings it
# into the cluster. No state and no plan ever holds one.

resource "google_secret_manager_secret" "this" {
  for_each = var.secret_names

  project             = var.account
  secret_id           = "${var.name}-${each.value}-${var.generation}"
  deletion_protection = var.protect
  labels              = local.labels

  replication {
    user_managed {
      replicas {
        location = var.region
      }
    }
  }

  depends_on = [google_project_service.this]
}

resource "google_secret_manager_secret_iam_member" "external_secrets" {
  for_each = google_secret_manager_secret.this

  project   = var.account
  secret_id = each.value.id
  role      = "roles/secretmanager.secretAccessor"
  member    = google_service_account.pod["external-secrets"].member
}
