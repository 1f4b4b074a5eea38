resource "google_monitoring_notification_channel" "budget" {
  for_each = var.monthly_budget_usd > 0 ? toset(var.budget_emails) : []

  project      = var.account
  type         = "email"
  display_name = "Budget of ${var.name}: ${each.value}"
  labels       = { email_address = each.value }
  user_labels  = local.labels

  depends_on = [google_project_service.this]
}

# The whole project, which is the deployment's own.
resource "google_billing_budget" "month" {
  count = var.monthly_budget_usd > 0 ? 1 : 0

  billing_account = var.billing_account
  display_name    = "${var.name} ${var.region}"

  budget_filter {
    projects        = ["projects/${local.project_number}"]
    calendar_period = "MONTH"
  }

  amount {
    specified_amount {
      currency_code = "USD"
      units         = tostring(var.monthly_budget_usd)
    }
  }

  dynamic "threshold_rules" {
    for_each = [
      { basis = "CURRENT_SPEND", share = 0.5 }, { basis = "CURRENT_SPEND", share = 0.8 },
      { basis = "CURRENT_SPEND", share = 1 }, { basis = "FORECASTED_SPEND", share = 1 },
    ]
    content {
      spend_basis       = threshold_rules.value.basis
      threshold_percent = threshold_rules.value.share
    }
  }

  all_updates_rule {
    monitoring_notification_channels = [for c in google_monitoring_notification_channel.budget : c.id]
    disable_default_iam_recipients   = false
  }

  depends_on = [google_project_service.this]
}
