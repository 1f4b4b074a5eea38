# Four tunnels: two connections of AWS with two each, to the two interfaces of Google's gateway. Google promises 99.99
# percent for this form and AWS takes either end down for upkeep without a word, so two would be one too few.
# BGP tells each gateway which of the tunnels are up.

locals {
  vpn_count = var.vpn ? 1 : 0
  aws_asn   = 64512
  gcp_asn   = 64514

  # What AWS calls tunnel 1 and 2 of connection 0 and 1, as the four interfaces that Google sees.
  tunnels = var.vpn ? {
    for i in range(4) : "tunnel-${i}" => {
      index      = i
      interface  = floor(i / 2)
      connection = floor(i / 2)
      first      = i % 2 == 0
    }
  } : {}
}

resource "aws_vpn_gateway" "this" {
  count = local.vpn_count

  vpc_id          = module.aws.network.id
  amazon_side_asn = local.aws_asn
  tags            = merge(local.tags, { Name = "${var.name}-to-gcp" })
}

# Named, and not propagated: nothing but the other network's own ranges is ever sent there, and while the tunnels are
# down it is dropped at the gateway and not sent to the internet.
resource "aws_route" "gcp" {
  count = var.vpn ? length(module.aws.network.route_table_ids) * length(module.gcp.network.advertise_cidrs) : 0

  route_table_id         = module.aws.network.route_table_ids[floor(count.index / length(module.gcp.network.advertise_cidrs))]
  destination_cidr_block = module.gcp.network.advertise_cidrs[count.index % length(module.gcp.network.advertise_cidrs)]
  gateway_id             = aws_vpn_gateway.this[0].id
}

resource "google_compute_ha_vpn_gateway" "this" {
  count = local.vpn_count

  project = var.gcp.account
  region  = var.gcp.region
  name    = "${var.name}-to-aws"
  network = module.gcp.network.id

  # An interface for each of AWS's connections; Google gives them their addresses.
  vpn_interfaces {
    id = 0
  }
  vpn_interfaces {
    id = 1
  }
}

resource "aws_customer_gateway" "gcp" {
  count = var.vpn ? 2 : 0

  type       = "ipsec.1"
  bgp_asn    = tostring(local.gcp_asn)
  ip_address = google_compute_ha_vpn_gateway.this[0].vpn_interfaces[count.index].ip_address
  tags       = merge(local.tags, { Name = "${var.name}-gcp-${count.index}" })
}

resource "aws_vpn_connection" "gcp" {
  count = var.vpn ? 2 : 0

  type                = "ipsec.1"
  vpn_gateway_id      = aws_vpn_gateway.this[0].id
  customer_gateway_id = aws_customer_gateway.gcp[count.index].id

  # Google's proposals for IKEv2, and nothing weaker.
  tunnel1_ike_versions                 = ["ikev2"]
  tunnel1_phase1_encryption_algorithms = ["AES256-GCM-16"]
  tunnel1_phase1_integrity_algorithms  = ["SHA2-256"]
  tunnel1_phase1_dh_group_numbers      = [14, 19, 20]
  tunnel1_phase2_encryption_algorithms = ["AES256-GCM-16"]
  tunnel1_phase2_integrity_algorithms  = ["SHA2-256"]
  tunnel1_phase2_dh_group_numbers      = [14, 19, 20]
  tunnel1_dpd_timeout_action           = "restart"
  tunnel2_ike_versions                 = ["ikev2"]
  tunnel2_phase1_encryption_algorithms = ["AES256-GCM-16"]
  tunnel2_phase1_integrity_algorithms  = ["SHA2-256"]
  tunnel2_phase1_dh_group_numbers      = [14, 19, 20]
  tunnel2_phase2_encryption_algorithms = ["AES256-GCM-16"]
  tunnel2_phase2_integrity_algorithms  = ["SHA2-256"]
  tunnel2_phase2_dh_group_numbers      = [14, 19, 20]
  tunnel2_dpd_timeout_action           = "restart"

  tags = merge(local.tags, { Name = "${var.name}-gcp-${count.index}" })
}

resource "google_compute_external_vpn_gateway" "aws" {
  count = local.vpn_count

  project         = var.gcp.account
  name            = "${var.name}-aws"
  redundancy_type = "FOUR_IPS_REDUNDANCY"
  labels          = local.tags

  dynamic "interface" {
    for_each = local.tunnels
    content {
      id         = interface.value.index
      ip_address = interface.value.first ? aws_vpn_connection.gcp[interface.value.connection].tunnel1_address : aws_vpn_connection.gcp[interface.value.connection].tunnel2_address
    }
  }
}

resource "google_compute_router" "vpn" {
  count = local.vpn_count

  project = var.gcp.account
  region  = var.gcp.region
  name    = "${var.name}-to-aws"
  network = module.gcp.network.id

  # Pods live in secondary ranges; all that is advertised is named, so that nothing else ever is.
  bgp {
    asn            = local.gcp_asn
    advertise_mode = "CUSTOM"

    dynamic "advertised_ip_ranges" {
      for_each = module.gcp.network.advertise_cidrs
      content {
        range = advertised_ip_ranges.value
      }
    }
  }
}

resource "google_compute_vpn_tunnel" "aws" {
  for_each = local.tunnels

  project                         = var.gcp.account
  region                          = var.gcp.region
  name                            = "${var.name}-aws-${each.value.index}"
  vpn_gateway                     = google_compute_ha_vpn_gateway.this[0].id
  vpn_gateway_interface           = each.value.interface
  peer_external_gateway           = google_compute_external_vpn_gateway.aws[0].id
  peer_external_gateway_interface = each.value.index
  router                          = google_compute_router.vpn[0].id
  ike_version                     = 2
  shared_secret                   = each.value.first ? aws_vpn_connection.gcp[each.value.connection].tunnel1_preshared_key : aws_vpn_connection.gcp[each.value.connection].tunnel2_preshared_key
  labels                          = local.tags
}

resource "google_compute_router_interface" "aws" {
  for_each = local.tunnels

  project    = var.gcp.account
  region     = var.gcp.region
  name       = each.key
  router     = google_compute_router.vpn[0].name
  vpn_tunnel = google_compute_vpn_tunnel.aws[each.key].name
  ip_range   = "${each.value.first ? aws_vpn_connection.gcp[each.value.connection].tunnel1_cgw_inside_address : aws_vpn_connection.gcp[each.value.connection].tunnel2_cgw_inside_address}/30"
}

resource "google_compute_router_peer" "aws" {
  for_each = local.tunnels

  project         = var.gcp.account
  region          = var.gcp.region
  name            = each.key
  router          = google_compute_router.vpn[0].name
  interface       = google_compute_router_interface.aws[each.key].name
  peer_asn        = local.aws_asn
  peer_ip_address = each.value.first ? aws_vpn_connection.gcp[each.value.connection].tunnel1_vgw_inside_address : aws_vpn_connection.gcp[each.value.connection].tunnel2_vgw_inside_address
}
