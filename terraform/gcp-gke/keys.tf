# Key rings and keys cannot be deleted and their names are never free again: `generation` is part of them, and a
# destroy only forgets them (their versions are destroyed, after 30 days).
#
# Images, operators' secrets and the database lie under Google's own keys: their service agents exist only after a
# command of the beta API, and a key's policy that names nobody is refused.

resource "google_kms_key_ring" "this" {
  project  = var.account
  location = var.region
  name     = "${var.name}-${var.generation}"

  depends_on = [google_project_service.this]
}

resource "google_kms_crypto_key" "platform" {
  #checkov:skip=CKV_GCP_82:Google deletes no key; prevent_destroy would only keep an operator from leaving
  name                       = "platform"
  key_ring                   = google_kms_key_ring.this.id
  purpose                    = "ENCRYPT_DECRYPT"
  rotation_period            = "7776000s"
  destroy_scheduled_duration = "2592000s"
  labels                     = local.labels
}

resource "google_kms_crypto_key" "data" {
  #checkov:skip=CKV_GCP_82:Google deletes no key; prevent_destroy would only keep an operator from leaving
  name                       = "data"
  key_ring                   = google_kms_key_ring.this.id
  purpose                    = "ENCRYPT_DECRYPT"
  rotation_period            = "7776000s"
  destroy_scheduled_duration = "2592000s"
  labels                     = local.labels
}

# GKE's agent encrypts the cluster's secrets; it exists since the API was turned on.
resource "google_kms_crypto_key_iam_member" "cluster" {
  crypto_key_id = google_kms_crypto_key.platform.id
  role          = "roles/cloudkms.cryptoKeyEncrypterDecrypter"
  member        = "serviceAccount:service-${local.project_number}@container-engine-robot.iam.gserviceaccount.com"

  depends_on = [google_project_service.this]
}

# Asking for the storage agent makes it.
data "google_storage_project_service_account" "this" {
  project = var.account

  depends_on = [google_project_service.this]
}

resource "google_kms_crypto_key_iam_member" "bucket" {
  crypto_key_id = google_kms_crypto_key.data.id
  role          = "roles/cloudkms.cryptoKeyEncrypterDecrypter"
  member        = "serviceAccount:${data.google_storage_project_service_account.this.email_address}"
}
