# Who may do what, by Workload Identity: a service account's pods act for an account of Google's, without a key.
# Workers need such an account, and not the cluster's identity alone, because presigned URLs are signed in its name.
# Gateways have none: they ask workers, and nothing of Google.

locals {
  pod_identities = {
    worker           = { namespace = var.namespace, service_account = "worker" }
    external-secrets = { namespace = "external-secrets", service_account = "external-secrets" }
  }

  # An account's name has 30 characters at most.
  account_ids = { worker = "${var.name}-worker", external-secrets = "${var.name}-secrets" }
}

resource "google_service_account" "pod" {
  for_each = local.pod_identities

  project      = var.account
  account_id   = local.account_ids[each.key]
  display_name = "${each.value.namespace}/${each.value.service_account} of ${var.name}"

  depends_on = [google_project_service.this]
}

# The pool of identities that this names exists since the project's first cluster with Workload Identity.
resource "google_service_account_iam_member" "pod" {
  for_each = local.pod_identities

  service_account_id = google_service_account.pod[each.key].name
  role               = "roles/iam.workloadIdentityUser"
  member             = "serviceAccount:${var.account}.svc.id.goog[${each.value.namespace}/${each.value.service_account}]"

  depends_on = [google_container_cluster.this]
}

resource "google_storage_bucket_iam_member" "worker" {
  bucket = google_storage_bucket.objects.name
  role   = "roles/storage.objectUser"
  member = google_service_account.pod["worker"].member
}

# To sign URLs in its own name, and in no other's.
resource "google_service_account_iam_member" "worker_signs" {
  service_account_id = google_service_account.pod["worker"].name
  role               = "roles/iam.serviceAccountTokenCreator"
  member             = google_service_account.pod["worker"].member
}

# Workers of the other clouds, by their own clusters' tokens: they act for the same account as ours.
resource "google_iam_workload_identity_pool" "peers" {
  count = length(var.peer_oidc_issuers) > 0 ? 1 : 0

  project                   = var.account
  workload_identity_pool_id = "${var.name}-peers-${var.generation}"
  display_name              = "${var.name} peers"
  description               = "Workers of ${var.name} in other clouds"

  depends_on = [google_project_service.this]
}

resource "google_iam_workload_identity_pool_provider" "peer" {
  for_each = var.peer_oidc_issuers

  project                            = var.account
  workload_identity_pool_id          = google_iam_workload_identity_pool.peers[0].workload_identity_pool_id
  workload_identity_pool_provider_id = "peer-${each.key}"
  # An issuer's word is taken for one service account only, whatever else its cluster runs.
  attribute_condition = "assertion.sub == 'system:serviceaccount:${var.namespace}:worker'"
  attribute_mapping   = { "google.subject" = "'${each.key}:' + assertion.sub" }

  oidc {
    issuer_uri = each.value
  }
}

resource "google_service_account_iam_member" "peer_worker" {
  for_each = var.peer_oidc_issuers

  service_account_id = google_service_account.pod["worker"].name
  role               = "roles/iam.workloadIdentityUser"
  member             = "principal://iam.googleapis.com/${google_iam_workload_identity_pool.peers[0].name}/subject/${each.key}:system:serviceaccount:${var.namespace}:worker"

  depends_on = [google_iam_workload_identity_pool_provider.peer]
}
