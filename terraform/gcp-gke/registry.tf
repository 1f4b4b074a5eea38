resource "google_artifact_registry_repository" "this" {
  #checkov:skip=CKV_GCP_84:images hold no secrets; for a key of ours the registry's agent would have to exist beforehand (keys.tf)
  project       = var.account
  location      = var.region
  repository_id = var.name
  format        = "DOCKER"
  description   = "Images of ${var.name}"
  labels        = local.labels

  docker_config {
    immutable_tags = true
  }

  cleanup_policies {
    id     = "untagged"
    action = "DELETE"
    condition {
      tag_state  = "UNTAGGED"
      older_than = "1209600s"
    }
  }
  cleanup_policies {
    id     = "newest"
    action = "KEEP"
    most_recent_versions {
      keep_count = 100
    }
  }

  depends_on = [google_project_service.this]
}

resource "google_artifact_registry_repository_iam_member" "node" {
  project    = var.account
  location   = var.region
  repository = google_artifact_registry_repository.this.name
  role       = "roles/artifactregistry.reader"
  member     = google_service_account.node.member
}
