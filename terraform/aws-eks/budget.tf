# By the tag `deployment`: it counts once the tag is activated for cost allocation in the billing console.
resource "aws_budgets_budget" "month" {
  count = var.monthly_budget_usd > 0 ? 1 : 0

  name         = "${var.name}-${var.region}-month"
  budget_type  = "COST"
  limit_amount = tostring(var.monthly_budget_usd)
  limit_unit   = "USD"
  time_unit    = "MONTHLY"

  cost_filter {
    name   = "TagKeyValue"
    values = ["user:deployment$${var.name}"]
  }

  dynamic "notification" {
    for_each = [
      { type = "ACTUAL", percent = 50 }, { type = "ACTUAL", percent = 80 }, { type = "ACTUAL", percent = 100 },
      { type = "FORECASTED", percent = 100 },
    ]
    content {
      comparison_operator        = "GREATER_THAN"
      notification_type          = notification.value.type
      threshold                  = notification.value.percent
      threshold_type             = "PERCENTAGE"
      subscriber_email_addresses = var.budget_emails
    }
  }

  tags = local.tags
}
