terraform {
  # 1.11: validations that refer to other variables (1.9) and `terraform test` with mocks (1.7).
  required_version = ">= 1.11, < 2.0"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 5.100"
    }
  }
}
