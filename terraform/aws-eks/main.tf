# One pool of Millrace in AWS: network, cluster, nodes, objects, registry, secrets and, if wanted, the job store.
# The files are in the order in which a request meets what they make; each resource's comment says what surprises.

data "aws_caller_identity" "current" {}
data "aws_partition" "current" {}
data "aws_region" "current" {}

locals {
  account   = data.aws_caller_identity.current.account_id
  partition = data.aws_partition.current.partition
  zones     = var.zones
  tags      = merge(var.tags, { deployment = var.name, managed-by = "terraform" })

  # What a worker listens on, and what gateways take clients at.
  worker_port = 9000

  # Labels and taints that the manifests select by; the same in every cloud.
  role_label = "millrace.dev/role"
}

# Holds everything else back: credentials of another account or a provider set to another region are noticed before
# anything is made there.
resource "terraform_data" "place" {
  input = { account = local.account, region = data.aws_region.current.name }

  lifecycle {
    precondition {
      condition     = local.account == var.account
      error_message = "The credentials belong to the account ${local.account}, but account is ${var.account}."
    }
    precondition {
      condition     = data.aws_region.current.name == var.region
      error_message = "The provider is set to ${data.aws_region.current.name}, but region is ${var.region}; set both to the same."
    }
  }
}
