# Inputs under uploads/, outputs under jobs/. The deployment removes what its jobs' retention says; the rules here are
# the net below it, and take what no job knows of: halves of uploads and what was deleted or overwritten.

resource "aws_s3_bucket" "objects" {
  #checkov:skip=CKV_AWS_18:access logs would double the requests of media; CloudTrail data events are the account's choice
  #checkov:skip=CKV_AWS_144:a second copy in another region is not what durability = "dual" needs; that one is in the other cloud, made by the workers
  #checkov:skip=CKV2_AWS_62:nobody waits for the bucket's events; the job store is the truth
  bucket        = "${var.name}-${local.account}-${var.region}"
  force_destroy = !var.protect
  tags          = local.tags

  depends_on = [terraform_data.place]
}

resource "aws_s3_bucket_public_access_block" "objects" {
  bucket                  = aws_s3_bucket.objects.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_ownership_controls" "objects" {
  bucket = aws_s3_bucket.objects.id
  rule {
    object_ownership = "BucketOwnerEnforced"
  }
}

resource "aws_s3_bucket_versioning" "objects" {
  bucket = aws_s3_bucket.objects.id
  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_server_side_encryption_configuration" "objects" {
  bucket = aws_s3_bucket.objects.id
  rule {
    # One request to KMS per bucket key and not per segment.
    bucket_key_enabled = true
    apply_server_side_encryption_by_default {
      sse_algorithm     = "aws:kms"
      kms_master_key_id = aws_kms_key.data.arn
    }
  }
}

resource "aws_s3_bucket_lifecycle_configuration" "objects" {
  bucket = aws_s3_bucket.objects.id

  rule {
    id     = "halves-of-uploads"
    status = "Enabled"
    filter {}
    abort_incomplete_multipart_upload {
      days_after_initiation = 2
    }
  }

  rule {
    id     = "uploads"
    status = "Enabled"
    filter {
      prefix = "uploads/"
    }
    expiration {
      days = var.upload_retention_days
    }
    abort_incomplete_multipart_upload {
      days_after_initiation = 2
    }
  }

  rule {
    id     = "deleted-and-overwritten"
    status = "Enabled"
    filter {}
    noncurrent_version_expiration {
      noncurrent_days = var.noncurrent_days
    }
    expiration {
      expired_object_delete_marker = true
    }
    abort_incomplete_multipart_upload {
      days_after_initiation = 2
    }
  }

  depends_on = [aws_s3_bucket_versioning.objects]
}

resource "aws_s3_bucket_cors_configuration" "objects" {
  count = length(var.browser_origins) > 0 ? 1 : 0

  bucket = aws_s3_bucket.objects.id
  cors_rule {
    allowed_origins = var.browser_origins
    allowed_methods = ["GET", "HEAD", "PUT"]
    allowed_headers = ["content-type", "content-md5", "range", "x-amz-*"]
    # A resumable upload has to read the parts' ETags.
    expose_headers  = ["ETag", "Accept-Ranges", "Content-Length", "Content-Range"]
    max_age_seconds = 3600
  }
}

resource "aws_s3_bucket_policy" "objects" {
  bucket = aws_s3_bucket.objects.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Sid       = "TlsOnly"
      Effect    = "Deny"
      Principal = "*"
      Action    = "s3:*"
      Resource  = [aws_s3_bucket.objects.arn, "${aws_s3_bucket.objects.arn}/*"]
      Condition = { Bool = { "aws:SecureTransport" = "false" } }
    }]
  })

  depends_on = [aws_s3_bucket_public_access_block.objects]
}
