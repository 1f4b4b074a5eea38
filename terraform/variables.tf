# What both clouds share, and an object for what is each one's own. A field that is left out has the module's default;
# the modules check every value again and say more (aws-eks/variables.tf, gcp-gke/variables.tf).

variable "name" {
  type        = string
  description = "Name of the deployment, the same in both clouds."
  default     = "millrace"
  nullable    = false

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,18}[a-z0-9]$", var.name))
    error_message = "name is \"${var.name}\"; wanted are 3 to 20 lower-case letters, digits and dashes, a letter first and no dash last."
  }
}

variable "aws" {
  type = object({
    account            = string
    region             = string
    zones              = list(string)
    network_cidr       = optional(string, "10.20.0.0/16")
    nat_count          = optional(number)
    kubernetes_version = optional(string)
    cluster_admins     = list(string)
    gateway_nodes = optional(object({
      arch          = optional(string, "arm64")
      machine_types = list(string)
      min           = optional(number, 2)
      max           = optional(number, 6)
      disk_gb       = optional(number, 50)
    }))
    worker_pools = optional(map(object({
      arch          = string
      machine_types = list(string)
      spot          = optional(bool, true)
      min           = optional(number, 0)
      max           = number
      disk_gb       = optional(number, 100)
    })))
    monthly_budget_usd = optional(number, 0)
  })
  description = "The pool in AWS: account, region, zones, who administers the cluster, nodes."
  nullable    = false

  validation {
    condition     = can(regex("^[0-9]{12}$", var.aws.account))
    error_message = "aws.account is \"${var.aws.account}\"; wanted is an AWS account id of 12 digits."
  }
}

variable "gcp" {
  type = object({
    account            = string
    region             = string
    zones              = list(string)
    network_cidr       = optional(string, "10.40.0.0/16")
    nat_count          = optional(number)
    kubernetes_version = optional(string)
    cluster_admins     = list(string)
    gateway_nodes = optional(object({
      arch          = optional(string, "amd64")
      machine_types = list(string)
      min           = optional(number, 2)
      max           = optional(number, 6)
      disk_gb       = optional(number, 50)
    }))
    worker_pools = optional(map(object({
      arch          = string
      machine_types = list(string)
      spot          = optional(bool, true)
      min           = optional(number, 0)
      max           = number
      disk_gb       = optional(number, 170)
    })))
    monthly_budget_usd = optional(number, 0)
    billing_account    = optional(string)
  })
  description = "The pool in Google Cloud: project, region, zones, who administers the cluster, nodes."
  nullable    = false

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.gcp.account))
    error_message = "gcp.account is \"${var.gcp.account}\"; wanted is the id of a project, not its number or display name."
  }
  # Both are /16, which the modules see to, so they overlap only if they are the same.
  validation {
    condition     = var.gcp.network_cidr != var.aws.network_cidr
    error_message = "gcp.network_cidr and aws.network_cidr are both ${var.aws.network_cidr}; wanted are two that do not overlap, or neither VPN nor workers' addresses could tell them apart."
  }
}

variable "control_plane_cidrs" {
  type        = list(string)
  description = "Networks that may reach both clusters' APIs from outside. Empty: only from inside the networks."
  default     = []
  nullable    = false

  validation {
    condition     = alltrue([for c in var.control_plane_cidrs : can(cidrnetmask(c))])
    error_message = "control_plane_cidrs has ${jsonencode([for c in var.control_plane_cidrs : c if !can(cidrnetmask(c))])}; wanted are IPv4 networks, such as 203.0.113.7/32."
  }
}

variable "namespace" {
  type        = string
  description = "Kubernetes namespace of gateways and workers, in both clusters."
  default     = "millrace"
  nullable    = false

  validation {
    condition     = can(regex("^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", var.namespace)) && !startswith(var.namespace, "kube-") && var.namespace != "default"
    error_message = "namespace is \"${var.namespace}\"; wanted is a DNS label of the deployment's own, neither default nor kube-…."
  }
}

variable "store" {
  type = object({
    cloud             = string
    machine_type      = string
    version           = optional(string, "17")
    storage_gb        = optional(number, 50)
    storage_max_gb    = optional(number, 500)
    high_availability = optional(bool, true)
    backup_days       = optional(number, 14)
  })
  description = "Managed Postgres for the job store, in one of the clouds; null: it is brought from elsewhere, as it has to be to survive a cloud. The other cloud's workers reach it by the VPN."
  default     = null

  validation {
    condition     = var.store == null || try(contains(["aws", "gcp"], var.store.cloud), false)
    error_message = "store.cloud is \"${try(var.store.cloud, "")}\"; wanted is aws or gcp. A store that survives the loss of either is neither's: leave store out and put its URL into the secret store-url."
  }
  validation {
    condition     = var.store == null || var.vpn
    error_message = "store is in one cloud and vpn is false: the other cloud's workers could not reach it, and one deployment has one store. Set vpn = true."
  }
}

variable "vpn" {
  type        = bool
  description = "Join the two networks by four IPsec tunnels (BGP, IKEv2), so that gateways reach the other cloud's workers and workers a store in the other cloud. Needed unless the networks are joined in another way. About 150 dollars a month and the egress. The tunnels' keys, which AWS makes, stand in the state."
  default     = true
  nullable    = false
}

variable "endpoint" {
  type = object({
    name       = string
    zone_id    = optional(string)
    aws_weight = optional(number, 50)
    gcp_weight = optional(number, 50)
  })
  description = "One name for clients, answered with the gateways of the clouds that are healthy, by weight. A weight of 0 takes new clients from a cloud. Without zone_id a Route 53 zone of that name is made, to which its parent has to delegate; with it, the records go into a zone that you have. null: neither; the gateways' addresses are for your own DNS."
  default     = null

  validation {
    condition     = try(var.endpoint.zone_id, null) == null || can(regex("^Z[A-Z0-9]{5,31}$", var.endpoint.zone_id))
    error_message = "endpoint.zone_id is \"${try(coalesce(var.endpoint.zone_id), "null")}\"; wanted is the id of a hosted zone such as Z0123456789ABC."
  }
  validation {
    condition     = var.endpoint == null || can(regex("^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\\.)+[a-z]{2,}$", var.endpoint.name))
    error_message = "endpoint.name is \"${try(var.endpoint.name, "")}\"; wanted is a domain name, in lower case and without a dot at its end."
  }
  validation {
    condition     = var.endpoint == null || try(alltrue([for w in [var.endpoint.aws_weight, var.endpoint.gcp_weight] : w >= 0 && w <= 255 && floor(w) == w]) && var.endpoint.aws_weight + var.endpoint.gcp_weight > 0, false)
    error_message = "endpoint has the weights ${try(var.endpoint.aws_weight, 0)} and ${try(var.endpoint.gcp_weight, 0)}; wanted are whole numbers from 0 to 255, not both 0: Route 53 would then take all for equal."
  }
}

variable "upload_retention_days" {
  type        = number
  description = "Days after which the buckets remove what lies under uploads/. null: the modules' default, 35."
  default     = null

  validation {
    condition     = var.upload_retention_days == null || try(var.upload_retention_days >= 2 && var.upload_retention_days <= 3650, false)
    error_message = "upload_retention_days is ${coalesce(var.upload_retention_days, 0)}; wanted are 2 to 3650 days."
  }
}

variable "noncurrent_days" {
  type        = number
  description = "Days for which the buckets keep what was overwritten or deleted. null: the modules' default, 7."
  default     = null

  validation {
    condition     = var.noncurrent_days == null || try(var.noncurrent_days >= 1 && var.noncurrent_days <= 90, false)
    error_message = "noncurrent_days is ${coalesce(var.noncurrent_days, 0)}; wanted are 1 to 90 days."
  }
}

variable "browser_origins" {
  type        = list(string)
  description = "Sites whose pages may upload to the buckets and play from them by presigned URLs."
  default     = []
  nullable    = false

  validation {
    condition     = alltrue([for o in var.browser_origins : can(regex("^https://[a-z0-9.-]+(:[0-9]+)?$", o))])
    error_message = "browser_origins has ${jsonencode([for o in var.browser_origins : o if !can(regex("^https://[a-z0-9.-]+(:[0-9]+)?$", o))])}; wanted are origins such as https://video.example."
  }
}

variable "secret_names" {
  type        = set(string)
  description = "Secrets to make room for in both clouds. null: the modules' default."
  default     = null

  validation {
    condition     = var.secret_names == null || try(alltrue([for s in var.secret_names : can(regex("^[a-z][a-z0-9-]{0,40}$", s))]), false)
    error_message = "secret_names has a name that is not up to 41 lower-case letters, digits and dashes."
  }
}

variable "log_retention_days" {
  type        = number
  description = "Days for which logs are kept, of those that CloudWatch offers. null: the modules' default, 365."
  default     = null

  validation {
    condition     = var.log_retention_days == null || try(var.log_retention_days >= 30, false)
    error_message = "log_retention_days is ${coalesce(var.log_retention_days, 0)}; wanted are at least 30."
  }
}

variable "budget_emails" {
  type        = list(string)
  description = "Who hears of either cloud's budget, at most five."
  default     = []
  nullable    = false

  validation {
    condition     = length(var.budget_emails) <= 5 && alltrue([for e in var.budget_emails : can(regex("^[^@[:space:]]+@[^@[:space:]]+\\.[^@[:space:]]+$", e))])
    error_message = "budget_emails is ${jsonencode(var.budget_emails)}; wanted are at most five mail addresses."
  }
}

variable "protect" {
  type        = bool
  description = "true: databases, buckets and the GKE cluster refuse to be destroyed. Set it to false and apply before `terraform destroy`."
  default     = true
  nullable    = false
}

variable "generation" {
  type        = number
  description = "Part of the names that clouds keep reserved after deletion. Raise it by one to build anew after a destroy."
  default     = 1
  nullable    = false

  validation {
    condition     = var.generation >= 1 && var.generation <= 999 && floor(var.generation) == var.generation
    error_message = "generation is ${var.generation}; wanted is a whole number from 1 to 999."
  }
}

variable "tags" {
  type        = map(string)
  description = "Tags and labels on everything that can have them, in both clouds."
  default     = {}
  nullable    = false

  validation {
    condition     = alltrue([for k, v in var.tags : can(regex("^[a-z][a-z0-9_-]{0,62}$", k)) && can(regex("^[a-z0-9_-]{0,63}$", v))])
    error_message = "tags has keys or values that are not up to 63 lower-case letters, digits, _ and -, which is what both clouds take."
  }
}
