# Room for secrets, without a value: an operator puts it in (`aws secretsmanager put-secret-value`), External Secrets
# brings it into the cluster. No state and no plan ever holds one.

resource "aws_secretsmanager_secret" "this" {
  #checkov:skip=CKV2_AWS_57:rotating these takes a change on the other side too (the store's role, both clouds' keys), which no function of AWS knows; the docs say how
  for_each = var.secret_names

  name                    = "${var.name}/${each.value}-${var.generation}"
  description             = "${each.value} of ${var.name}"
  kms_key_id              = aws_kms_key.data.arn
  recovery_window_in_days = var.protect ? 30 : 0
  tags                    = local.tags
}
