# One pool of Millrace in Google Cloud: network, cluster, nodes, objects, registry, secrets and, if wanted, the job
# store. The same variables and outputs as aws-eks.

data "google_project" "this" {
  project_id = var.account
}

locals {
  project_number = data.google_project.this.number
  zones          = var.zones
  labels         = merge(var.tags, { deployment = var.name, managed-by = "terraform" })

  # What a worker listens on.
  worker_port = 9000

  # Labels and taints that the manifests select by; the same in every cloud.
  role_label = "millrace.dev/role"
}

# Off again only by hand: turning an API off takes what others made by it along.
resource "google_project_service" "this" {
  for_each = toset(concat([
    "artifactregistry.googleapis.com", "cloudkms.googleapis.com", "cloudresourcemanager.googleapis.com",
    "compute.googleapis.com", "container.googleapis.com", "iam.googleapis.com",
    # Presigned URLs are signed by this one: no key of a service account exists anywhere.
    "iamcredentials.googleapis.com",
    "logging.googleapis.com", "monitoring.googleapis.com", "secretmanager.googleapis.com", "storage.googleapis.com",
    "sts.googleapis.com",
    ], var.database == null ? [] : ["sqladmin.googleapis.com"],
  var.monthly_budget_usd > 0 ? ["billingbudgets.googleapis.com"] : []))

  project            = var.account
  service            = each.value
  disable_on_destroy = false
}

# The project's own log bucket: GKE, the network and the database all write there.
resource "google_logging_project_bucket_config" "default" {
  project        = var.account
  location       = "global"
  bucket_id      = "_Default"
  retention_days = var.log_retention_days

  depends_on = [google_project_service.this]
}
