//! The loss of a cloud, with a short cut before it; `make partition` has the long one.

use std::time::Duration;

use millrace_bench::partition::{self, Options};

use crate::stage::turn;

#[tokio::test(flavor = "multi_thread")]
async fn what_had_reached_dual_outlives_its_cloud() {
    let _turn = turn().await;
    millrace_bench::install_crypto();
    partition::run(&Options { cut: Duration::from_secs(10) }).await.unwrap();
}
