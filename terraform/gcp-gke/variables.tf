# The same variables as aws-eks's, in the same order, and billing_account at the end; what differs between the clouds
# is said in the description.

variable "name" {
  type        = string
  description = "Name of the deployment; every resource's name begins with it. 3 to 20 characters."
  default     = "millrace"
  nullable    = false

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,18}[a-z0-9]$", var.name))
    error_message = "name is \"${var.name}\"; wanted are 3 to 20 lower-case letters, digits and dashes, a letter first and no dash last, because the names of roles, accounts and buckets are made from it."
  }
}

variable "account" {
  type        = string
  description = "Google Cloud project id. The project should be the deployment's own: APIs are turned on in it."
  nullable    = false

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.account))
    error_message = "account is \"${var.account}\"; wanted is the id of a project, 6 to 30 lower-case letters, digits and dashes, neither its number nor its display name."
  }
}

variable "region" {
  type        = string
  description = "Google Cloud region."
  nullable    = false

  validation {
    condition     = can(regex("^[a-z]+-[a-z]+[0-9]{1,2}$", var.region))
    error_message = "region is \"${var.region}\"; wanted is the name of a region, such as europe-west4, not of a zone."
  }
}

variable "zones" {
  type        = list(string)
  description = "Zones of the region to use: two, or three so that the loss of one leaves two thirds. They are named and not looked up, so that a zone that comes or is in trouble never moves a subnet, and because not every zone has every machine type."
  nullable    = false

  validation {
    condition     = contains([2, 3], length(distinct(var.zones))) && length(distinct(var.zones)) == length(var.zones)
    error_message = "zones is ${jsonencode(var.zones)}; wanted are two or three different ones: with one, all falls together."
  }
  validation {
    condition     = alltrue([for z in var.zones : can(regex("^${var.region}-[a-z]$", z))])
    error_message = "zones is ${jsonencode(var.zones)}; wanted are zones of ${var.region}, such as europe-west4-a."
  }
}

variable "network_cidr" {
  type        = string
  description = "The network's own /16 of private addresses. Nodes, pods and the database live in it; it must not overlap the other cloud's."
  default     = "10.40.0.0/16"
  nullable    = false

  validation {
    condition     = can(cidrhost(var.network_cidr, 0)) && endswith(var.network_cidr, "/16")
    error_message = "network_cidr is \"${var.network_cidr}\"; wanted is an IPv4 network of 16 bits, such as 10.40.0.0/16."
  }
  validation {
    condition     = can(regex("^(10\\.[0-9]+|172\\.(1[6-9]|2[0-9]|3[01])|192\\.168)\\.0\\.0/", var.network_cidr))
    error_message = "network_cidr is \"${var.network_cidr}\"; wanted is the first address of a private network within 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16."
  }
  validation {
    condition     = !startswith(var.network_cidr, "172.20.") && !startswith(var.network_cidr, "172.17.")
    error_message = "network_cidr is \"${var.network_cidr}\"; 172.20.0.0/16 holds the services of the cluster in AWS and 172.17.0.0/16 container runtimes. Take another one."
  }
}

variable "nat_count" {
  type        = number
  description = "Fixed addresses through which private nodes reach the internet. On Google all belong to one regional Cloud NAT, which no zone takes along; each serves about 60,000 connections at once to one destination."
  default     = 1
  nullable    = false

  validation {
    condition     = var.nat_count >= 1 && var.nat_count <= 3 && floor(var.nat_count) == var.nat_count
    error_message = "nat_count is ${var.nat_count}; wanted is 1, 2 or 3: without one, nodes cannot fetch images or inputs."
  }
}

variable "control_plane_cidrs" {
  type        = list(string)
  description = "Networks that may reach the cluster's API from outside. Empty: only the private endpoint exists, for what is inside the network or comes by VPN. Google's own networks are never let in for being Google's."
  default     = []
  nullable    = false

  validation {
    condition     = alltrue([for c in var.control_plane_cidrs : can(cidrnetmask(c))])
    error_message = "control_plane_cidrs has ${jsonencode([for c in var.control_plane_cidrs : c if !can(cidrnetmask(c))])}; wanted are IPv4 networks, such as 203.0.113.7/32."
  }
  validation {
    condition     = alltrue([for c in var.control_plane_cidrs : try(tonumber(split("/", c)[1]) >= 8, true)])
    error_message = "control_plane_cidrs has a network wider than /8, which is the internet or nearly so; name the networks that your operators come from."
  }
}

variable "kubernetes_version" {
  type        = string
  description = "Minor version of Kubernetes. GKE begins with it and follows the REGULAR channel from there, in the nightly window; raising it here raises it at once. The manifests are written for 1.32 and later."
  default     = "1.34"
  nullable    = false

  validation {
    condition     = can(regex("^1\\.[0-9]{2}$", var.kubernetes_version))
    error_message = "kubernetes_version is \"${var.kubernetes_version}\"; wanted is a minor version such as \"1.34\", without a patch."
  }
  validation {
    condition     = try(tonumber(split(".", var.kubernetes_version)[1]) >= 32, true)
    error_message = "kubernetes_version is \"${var.kubernetes_version}\"; wanted is 1.32 or later, which the manifests are written for."
  }
}

variable "cluster_admins" {
  type        = list(string)
  description = "Who may do everything in the cluster: IAM members such as group:operators@video.example. Owners of the project can in any case."
  nullable    = false

  validation {
    condition     = length(var.cluster_admins) > 0
    error_message = "cluster_admins is empty; wanted is at least one, or nobody could do anything in the cluster."
  }
  validation {
    condition     = alltrue([for a in var.cluster_admins : can(regex("^(user|group|serviceAccount|principal|principalSet):.+$", a))])
    error_message = "cluster_admins has ${jsonencode([for a in var.cluster_admins : a if !can(regex("^(user|group|serviceAccount|principal|principalSet):.+$", a))])}; wanted are members such as group:operators@video.example."
  }
  validation {
    condition     = length(distinct(var.cluster_admins)) == length(var.cluster_admins)
    error_message = "cluster_admins names somebody twice."
  }
}

variable "gateway_nodes" {
  type = object({
    arch          = optional(string, "amd64")
    machine_types = list(string)
    min           = optional(number, 2)
    max           = optional(number, 6)
    disk_gb       = optional(number, 50)
  })
  description = "On-demand nodes for gateways and what the cluster itself needs. arch is amd64 or arm64; min and max count nodes over all zones; on Google each machine type is a node pool of its own, and the bounds are for each."
  default     = { arch = "amd64", machine_types = ["n4-standard-2"] }
  nullable    = false

  validation {
    condition     = contains(["amd64", "arm64"], var.gateway_nodes.arch)
    error_message = "gateway_nodes.arch is \"${var.gateway_nodes.arch}\"; wanted is amd64 or arm64."
  }
  validation {
    condition     = length(var.gateway_nodes.machine_types) > 0 && alltrue([for t in var.gateway_nodes.machine_types : can(regex("^[a-z]+[0-9]+[a-z]*-[a-z0-9-]+$", t))])
    error_message = "gateway_nodes.machine_types is ${jsonencode(var.gateway_nodes.machine_types)}; wanted is at least one Compute Engine type such as n4-standard-2."
  }
  validation {
    condition     = alltrue([for t in var.gateway_nodes.machine_types : can(regex("^(t2a|c4a|n4a)-", t)) == (var.gateway_nodes.arch == "arm64")])
    error_message = "gateway_nodes.machine_types is ${jsonencode(var.gateway_nodes.machine_types)} for ${var.gateway_nodes.arch}; t2a, c4a and n4a types are arm64 and all others amd64."
  }
  validation {
    condition     = var.gateway_nodes.min >= 2 && var.gateway_nodes.min <= var.gateway_nodes.max
    error_message = "gateway_nodes has min ${var.gateway_nodes.min} and max ${var.gateway_nodes.max}; wanted is min of at least 2, so that one node can go, and max of at least min."
  }
  validation {
    condition     = var.gateway_nodes.disk_gb >= 30 && var.gateway_nodes.disk_gb <= 1000
    error_message = "gateway_nodes.disk_gb is ${var.gateway_nodes.disk_gb}; wanted are 30 to 1000 GB."
  }
}

variable "worker_pools" {
  type = map(object({
    arch          = string
    machine_types = list(string)
    spot          = optional(bool, true)
    min           = optional(number, 0)
    max           = number
    disk_gb       = optional(number, 170)
  }))
  description = "Pools of nodes for workers, by name; all carry the taint millrace.dev/role=worker. Each machine type becomes a node pool of its own with these bounds, NAME-0, NAME-1 and so on; the autoscaler takes another when one is sold out. disk_gb holds images and the scratch of running jobs, and what GKE keeps of it for itself: 170 is for two workers, as many as 8 vCPUs are for."
  default = {
    spot-amd64 = { arch = "amd64", machine_types = ["c4-highcpu-8", "c3-highcpu-8", "c2d-highcpu-8"], max = 20 }
    spot-arm64 = { arch = "arm64", machine_types = ["c4a-highcpu-8"], max = 20 }
  }
  nullable = false

  validation {
    condition     = length(var.worker_pools) > 0 && alltrue([for n, _ in var.worker_pools : can(regex("^[a-z][a-z0-9-]{0,14}$", n)) && n != "gateway"])
    error_message = "worker_pools has the names ${jsonencode(keys(var.worker_pools))}; wanted is at least one, of 1 to 15 lower-case letters, digits and dashes, and none called gateway."
  }
  validation {
    condition     = alltrue([for p in var.worker_pools : contains(["amd64", "arm64"], p.arch)])
    error_message = "worker_pools has an arch that is neither amd64 nor arm64, in ${jsonencode([for n, p in var.worker_pools : n if !contains(["amd64", "arm64"], p.arch)])}."
  }
  validation {
    condition     = alltrue([for p in var.worker_pools : length(p.machine_types) > 0 && alltrue([for t in p.machine_types : can(regex("^[a-z]+[0-9]+[a-z]*-[a-z0-9-]+$", t))])])
    error_message = "worker_pools has machine_types that are missing or no Compute Engine types, in ${jsonencode([for n, p in var.worker_pools : n if length(p.machine_types) == 0 || !alltrue([for t in p.machine_types : can(regex("^[a-z]+[0-9]+[a-z]*-[a-z0-9-]+$", t))])])}; wanted is at least one such as c4a-highcpu-8."
  }
  validation {
    condition     = alltrue(flatten([for p in var.worker_pools : [for t in p.machine_types : can(regex("^(t2a|c4a|n4a)-", t)) == (p.arch == "arm64")]]))
    error_message = "worker_pools has machine_types of another architecture than arch says, in ${jsonencode([for n, p in var.worker_pools : n if !alltrue([for t in p.machine_types : can(regex("^(t2a|c4a|n4a)-", t)) == (p.arch == "arm64")])])}; t2a, c4a and n4a types are arm64 and all others amd64."
  }
  validation {
    condition     = alltrue([for p in var.worker_pools : p.min >= 0 && p.max >= 1 && p.min <= p.max && p.max <= 1000])
    error_message = "worker_pools has bounds that do not fit, in ${jsonencode([for n, p in var.worker_pools : n if !(p.min >= 0 && p.max >= 1 && p.min <= p.max && p.max <= 1000)])}; wanted is 0 ≤ min ≤ max and 1 ≤ max ≤ 1000."
  }
  validation {
    condition     = alltrue([for p in var.worker_pools : p.disk_gb >= 90 && p.disk_gb <= 2000])
    error_message = "worker_pools has disk_gb outside of 90 to 2000, in ${jsonencode([for n, p in var.worker_pools : n if p.disk_gb < 90 || p.disk_gb > 2000])}: of less, GKE does not leave one worker its scratch."
  }
}

variable "namespace" {
  type        = string
  description = "Kubernetes namespace of gateways and workers; cloud identities are bound to its service accounts."
  default     = "millrace"
  nullable    = false

  validation {
    condition     = can(regex("^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", var.namespace)) && !startswith(var.namespace, "kube-") && var.namespace != "default"
    error_message = "namespace is \"${var.namespace}\"; wanted is a DNS label of the deployment's own, neither default nor kube-…."
  }
}

variable "upload_retention_days" {
  type        = number
  description = "Days after which the bucket removes what lies under uploads/, beside the deployment's own retention, which is per job. At least as long as that."
  default     = 35
  nullable    = false

  validation {
    condition     = var.upload_retention_days >= 2 && var.upload_retention_days <= 3650 && floor(var.upload_retention_days) == var.upload_retention_days
    error_message = "upload_retention_days is ${var.upload_retention_days}; wanted are 2 to 3650 whole days: a job may begin a day after its upload."
  }
}

variable "noncurrent_days" {
  type        = number
  description = "Days for which the bucket keeps what was overwritten or deleted. They are paid for; they are what brings back a deletion by mistake."
  default     = 7
  nullable    = false

  validation {
    condition     = var.noncurrent_days >= 1 && var.noncurrent_days <= 90 && floor(var.noncurrent_days) == var.noncurrent_days
    error_message = "noncurrent_days is ${var.noncurrent_days}; wanted are 1 to 90 whole days."
  }
}

variable "browser_origins" {
  type        = list(string)
  description = "Sites whose pages may upload to the bucket and play from it by presigned URLs. Empty: none."
  default     = []
  nullable    = false

  validation {
    condition     = alltrue([for o in var.browser_origins : can(regex("^https://[a-z0-9.-]+(:[0-9]+)?$", o))])
    error_message = "browser_origins has ${jsonencode([for o in var.browser_origins : o if !can(regex("^https://[a-z0-9.-]+(:[0-9]+)?$", o))])}; wanted are origins such as https://video.example, without a path and without *."
  }
}

variable "secret_names" {
  type        = set(string)
  description = "Secrets to make room for; the overlays of k8s/ use these. Their values are put in by an operator, never by Terraform, so that no state holds them."
  default     = ["store-url", "store-password", "api-keys", "mtls"]
  nullable    = false

  validation {
    condition     = alltrue([for s in var.secret_names : can(regex("^[a-z][a-z0-9-]{0,40}$", s))])
    error_message = "secret_names has ${jsonencode([for s in var.secret_names : s if !can(regex("^[a-z][a-z0-9-]{0,40}$", s))])}; wanted are names of up to 41 lower-case letters, digits and dashes."
  }
}

variable "database" {
  type = object({
    machine_type      = string
    version           = optional(string, "17")
    storage_gb        = optional(number, 50)
    storage_max_gb    = optional(number, 500)
    high_availability = optional(bool, true)
    backup_days       = optional(number, 14)
  })
  description = "Managed Postgres for the job store; null makes none. With high_availability it survives a zone. It does not survive its own cloud. The machine type is Cloud SQL's tier."
  default     = null

  validation {
    condition     = var.database == null || can(regex("^db-(custom-[0-9]+-[0-9]+|perf-optimized-N-[0-9]+|f1-micro|g1-small)$", var.database.machine_type))
    error_message = "database.machine_type is \"${try(var.database.machine_type, "")}\"; wanted is a tier of Cloud SQL such as db-custom-2-8192."
  }
  validation {
    condition     = var.database == null || can(regex("^1[5-9]$", var.database.version))
    error_message = "database.version is \"${try(var.database.version, "")}\"; wanted is a major version of Postgres from 15 to 19, such as \"17\"."
  }
  validation {
    condition     = var.database == null || try(var.database.storage_gb >= 10 && var.database.storage_max_gb > var.database.storage_gb && var.database.storage_max_gb <= 16384, false)
    error_message = "database has storage_gb ${try(var.database.storage_gb, 0)} and storage_max_gb ${try(var.database.storage_max_gb, 0)}; wanted are at least 10, more than that, and at most 16384."
  }
  validation {
    condition     = var.database == null || try(var.database.backup_days >= 1 && var.database.backup_days <= 365, false)
    error_message = "database.backup_days is ${try(var.database.backup_days, 0)}; wanted are 1 to 365: without backups there is no way back to a point in time."
  }
}

variable "peer_cidrs" {
  type        = list(string)
  description = "Private networks of the other clouds, as they arrive by VPN or peering: their gateways may reach this pool's workers, their workers the database."
  default     = []
  nullable    = false

  validation {
    condition     = alltrue([for c in var.peer_cidrs : can(cidrnetmask(c)) && can(regex("^(10\\.|172\\.(1[6-9]|2[0-9]|3[01])\\.|192\\.168\\.)", c))])
    error_message = "peer_cidrs has ${jsonencode([for c in var.peer_cidrs : c if !(can(cidrnetmask(c)) && can(regex("^(10\\.|172\\.(1[6-9]|2[0-9]|3[01])\\.|192\\.168\\.)", c)))])}; wanted are private IPv4 networks such as 10.20.0.0/16: nothing may reach workers or the database from the internet."
  }
}

variable "peer_oidc_issuers" {
  type        = map(string)
  description = "Token issuers of the other clouds' clusters, by pool name. Their workers' service accounts may read and write this bucket, without any key."
  default     = {}
  nullable    = false

  validation {
    condition     = alltrue([for i in values(var.peer_oidc_issuers) : can(regex("^https://[^/?#]+[^?#]*$", i)) && !endswith(i, "/")])
    error_message = "peer_oidc_issuers has ${jsonencode([for i in values(var.peer_oidc_issuers) : i if !can(regex("^https://[^/?#]+[^?#]*$", i)) || endswith(i, "/")])}; wanted is the issuer of a cluster's tokens, an https URL without a slash at its end."
  }
  validation {
    condition     = alltrue([for n, _ in var.peer_oidc_issuers : can(regex("^[a-z][a-z0-9-]{0,14}$", n))])
    error_message = "peer_oidc_issuers has the names ${jsonencode(keys(var.peer_oidc_issuers))}; wanted are names of 1 to 15 lower-case letters, digits and dashes."
  }
}

variable "log_retention_days" {
  type        = number
  description = "Days for which the project's logs are kept, the control plane's, the network's and the database's among them."
  default     = 365
  nullable    = false

  validation {
    condition     = var.log_retention_days >= 30 && var.log_retention_days <= 3650 && floor(var.log_retention_days) == var.log_retention_days
    error_message = "log_retention_days is ${var.log_retention_days}; wanted are 30 to 3650 whole days."
  }
}

variable "monthly_budget_usd" {
  type        = number
  description = "What a month of this cloud may cost, in US dollars. Mails go out at 50, 80 and 100 percent and when the forecast passes it; nothing is switched off. 0: no budget."
  default     = 0
  nullable    = false

  validation {
    condition     = var.monthly_budget_usd >= 0 && floor(var.monthly_budget_usd) == var.monthly_budget_usd
    error_message = "monthly_budget_usd is ${var.monthly_budget_usd}; wanted are whole dollars, or 0 for none."
  }
}

variable "budget_emails" {
  type        = list(string)
  description = "Who hears of the budget, 1 to 5 addresses (Google allows five)."
  default     = []
  nullable    = false

  validation {
    condition     = alltrue([for e in var.budget_emails : can(regex("^[^@[:space:]]+@[^@[:space:]]+\\.[^@[:space:]]+$", e))]) && length(var.budget_emails) <= 5
    error_message = "budget_emails is ${jsonencode(var.budget_emails)}; wanted are at most five mail addresses."
  }
  validation {
    condition     = var.monthly_budget_usd == 0 || length(var.budget_emails) > 0
    error_message = "budget_emails is empty beside a monthly_budget_usd: a budget that nobody hears of does nothing."
  }
}

variable "protect" {
  type        = bool
  description = "true: the database, and the bucket with what is in it, refuse to be destroyed, and deleted secrets and keys can be had back. Set it to false and apply before `terraform destroy`."
  default     = true
  nullable    = false
}

variable "generation" {
  type        = number
  description = "Part of the names that a cloud keeps reserved after deletion (secrets, snapshots; on Google also key rings, databases and identity pools). Raise it by one to build anew after a destroy."
  default     = 1
  nullable    = false

  validation {
    condition     = var.generation >= 1 && var.generation <= 999 && floor(var.generation) == var.generation
    error_message = "generation is ${var.generation}; wanted is a whole number from 1 to 999."
  }
}

variable "tags" {
  type        = map(string)
  description = "Tags (Google: labels) on everything that can have them, beside deployment and managed-by."
  default     = {}
  nullable    = false

  validation {
    condition     = alltrue([for k, v in var.tags : can(regex("^[a-z][a-z0-9_-]{0,62}$", k)) && can(regex("^[a-z0-9_-]{0,63}$", v))])
    error_message = "tags has ${jsonencode({ for k, v in var.tags : k => v if !(can(regex("^[a-z][a-z0-9_-]{0,62}$", k)) && can(regex("^[a-z0-9_-]{0,63}$", v))) })}; wanted are keys and values of up to 63 lower-case letters, digits, _ and -, a letter first in keys: what both clouds take."
  }
  validation {
    condition     = !anytrue([for k, _ in var.tags : contains(["deployment", "managed-by"], k)])
    error_message = "tags has deployment or managed-by, which are set by the module."
  }
}

variable "billing_account" {
  type        = string
  description = "Google only: the billing account that pays for the project, for the budget. null when there is none."
  default     = null

  validation {
    condition     = var.billing_account == null || can(regex("^[0-9A-F]{6}-[0-9A-F]{6}-[0-9A-F]{6}$", var.billing_account))
    error_message = "billing_account is \"${coalesce(var.billing_account, "null")}\"; wanted is an id such as 012345-6789AB-CDEF01, as `gcloud billing accounts list` shows it."
  }
  validation {
    condition     = var.monthly_budget_usd == 0 || var.billing_account != null
    error_message = "billing_account is null beside a monthly_budget_usd: Google keeps budgets with billing accounts."
  }
}
