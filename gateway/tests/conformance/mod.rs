//! RFC 9113 and RFC 7541, case by case: what the public suites check of a server, written from the RFCs' own sentences.
//!
//! Every case runs against the real gateway, without TLS and with, and against a proxy of raw Pingora in the same run,
//! so that "no worse than what it is made of" is measured and not believed; and against two servers that are wrong,
//! so that each case is seen to fail.

mod case;
mod definitions;
mod frames;
mod hpack;
mod messages;
mod servers;
mod starting;
mod streams;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use case::Case;
use servers::Wrong;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use crate::fake::{Behaviour, Fake};
use crate::front::tls::{Authority, Files};
use crate::harness::Gateway;

/// How many cases the public suite has; with none of ours lost.
const CASES: usize = 147;
/// The cases that may fail, each explained where it is named.
const KNOWN: [&str; 1] = [messages::PSEUDO_FIELDS_IN_TRAILERS];
/// How long a server that is right may take for one step; a hundred cases run at once.
const PATIENCE: Duration = Duration::from_secs(10);
/// The same for one that is wrong, and so takes all of it.
const PATIENCE_WITH_WRONG: Duration = Duration::from_millis(700);

fn cases() -> Vec<Case> {
    [starting::cases(), streams::cases(), definitions::cases(), messages::cases(), hpack::cases()]
        .into_iter()
        .flatten()
        .collect()
}

/// The cases that fail against a server, and why.
async fn failing(
    address: SocketAddr,
    tls: Option<TlsConnector>,
    patience: Duration,
) -> Vec<(&'static str, String)> {
    let mut running = JoinSet::new();
    for case in cases() {
        let tls = tls.clone();
        // Nothing is what comes of these; the test need not wait long for it.
        let patience = if KNOWN.contains(&case.name) { patience / 10 } else { patience };
        running.spawn(async move {
            let stream = TcpStream::connect(address).await.unwrap();
            stream.set_nodelay(true).unwrap();
            let ran = match tls {
                None => case.run(stream, patience).await,
                Some(tls) => {
                    let name = "127.0.0.1".try_into().unwrap();
                    case.run(tls.connect(name, stream).await.unwrap(), patience).await
                }
            };
            ran.err().map(|why| (case.name, why))
        });
    }
    let mut failing: Vec<_> = running.join_all().await.into_iter().flatten().collect();
    failing.sort_unstable();
    failing
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_conforms_at_least_as_well_as_raw_pingora() {
    let names: std::collections::BTreeSet<_> = cases().iter().map(|case| case.name).collect();
    assert_eq!((cases().len(), names.len()), (CASES, CASES));
    let (worker, authority) = (Fake::start("aws", "w1").await, Authority::new());
    worker.behave(Behaviour::Echo);
    let files = Files::new(&authority.server(2099));
    // Several hundred requests at once on a busy machine are no case of slow workers.
    let timeouts = "[timeouts]\nconnect = \"10s\"\nquery = \"10s\"\n";
    let gateway = Gateway::start(&(files.routing(&[&worker], "") + timeouts)).await;
    gateway.healthy(1).await;
    let (raw, _close) = servers::raw_pingora(worker.address).await;
    let tls = TlsConnector::from(Arc::new(authority.speaking("h2")));
    let (ours, ours_by_tls, theirs) = tokio::join!(
        failing(gateway.http, None, PATIENCE),
        failing(gateway.https.unwrap(), Some(tls), PATIENCE),
        failing(raw, None, PATIENCE),
    );
    for (who, failing) in
        [("the gateway", &ours), ("the gateway by TLS", &ours_by_tls), ("raw Pingora", &theirs)]
    {
        println!("{who}: {} of {CASES} cases", CASES - failing.len());
        for (case, why) in failing {
            println!("  {case}\n    {why}");
        }
    }
    for failing in [&ours, &ours_by_tls] {
        let beside: Vec<_> = failing.iter().filter(|(case, _)| !KNOWN.contains(case)).collect();
        assert_eq!(beside, Vec::<&(&str, String)>::new());
        let worse = failing.iter().find(|(case, _)| theirs.iter().all(|(known, _)| known != case));
        assert_eq!(worse, None, "raw Pingora does better");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_case_fails_against_a_server_that_is_wrong() {
    let (garbage, deaf) = (servers::wrong(Wrong::Garbage).await, servers::wrong(Wrong::Deaf).await);
    let (garbage, deaf) =
        tokio::join!(failing(garbage, None, PATIENCE_WITH_WRONG), failing(deaf, None, PATIENCE_WITH_WRONG));
    assert_eq!(garbage.len(), CASES);
    let failed: Vec<_> = deaf.iter().map(|(name, _)| *name).collect();
    let passed: Vec<_> = cases().iter().map(|case| case.name).filter(|name| !failed.contains(name)).collect();
    // All that these two want is the handshake itself.
    assert_eq!(passed, cases()[..2].iter().map(|case| case.name).collect::<Vec<_>>());
}
