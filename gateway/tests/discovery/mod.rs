//! Endpoints by DNS and by Kubernetes: the source alone against a server, and the real gateway following one.

mod cluster;
mod kubernetes;
pub(crate) mod server;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use millrace_gateway::config::discover::{Dns, Record};
use millrace_gateway::fleet::discovery::dns::{ROUND_MAX, Source};
use millrace_gateway::fleet::discovery::{Discovery as _, Outcome, Round};
use reqwest::StatusCode;
use server::{Reply, Server, ip, srv};

use crate::fake::{Behaviour, Fake};
use crate::harness::{Gateway, check, eventually, gauge, pools};

const FLOOR: Duration = Duration::from_millis(200);

fn source(server: &Server, name: &str, record: Record) -> Source {
    Source::new(Dns {
        name: name.parse().unwrap(),
        record,
        min_ttl: FLOOR,
        max_ttl: FLOOR * 4,
        empty_after: Duration::from_secs(1),
        resolver: Some(server.address),
    })
}

fn by_address(server: &Server) -> Source {
    source(server, "w.example.", Record::Address { port: 9000 })
}

fn found(round: &Round) -> Vec<String> {
    let endpoints = round.endpoints.as_ref().unwrap_or_else(|| panic!("nothing new: {round:?}"));
    endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_of_both_families_change_within_the_ttl_and_never_sooner_than_the_floor() {
    let server = Server::start().await;
    server.addresses("w.example.", &["10.0.0.2", "10.0.0.1", "10.0.0.1"], 0);
    server.say(
        "w.example.",
        RecordType::AAAA,
        Reply::Records(vec![ip("fd00::1"), ip("::ffff:10.0.0.1")], 3600),
    );
    let mut source = by_address(&server);
    let round = source.next().await;
    assert_eq!(found(&round), ["10.0.0.1:9000", "10.0.0.2:9000", "[fd00::1]:9000"]);
    assert_eq!((round.outcome, round.error), (Outcome::Good, None));
    let (started, questions) = (Instant::now(), server.questions());
    server.addresses("w.example.", &["10.0.0.3"], 3600);
    let round = source.next().await;
    assert_eq!(found(&round), ["10.0.0.1:9000", "10.0.0.3:9000", "[fd00::1]:9000"]);
    assert!(started.elapsed() >= FLOOR.mul_f64(0.9), "a TTL of 0 is asked again at the floor");
    assert_eq!(server.questions(), questions + 2, "and no more often");
    let started = Instant::now();
    source.next().await;
    assert!(started.elapsed() >= FLOOR * 3 && started.elapsed() < Duration::from_secs(10), "the ceiling");
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_keep_what_each_question_last_brought() {
    let server = Server::start().await;
    server.addresses("w.example.", &["10.0.0.1"], 0);
    server.say("w.example.", RecordType::AAAA, Reply::Records(vec![ip("fd00::1")], 0));
    let mut source = by_address(&server);
    source.next().await;
    for trouble in [
        Reply::Code(ResponseCode::ServFail),
        Reply::Code(ResponseCode::Refused),
        Reply::Silence,
        Reply::Garbage,
    ] {
        server.say("w.example.", RecordType::AAAA, trouble.clone());
        server.addresses("w.example.", &["10.0.0.2"], 0);
        let started = Instant::now();
        let round = source.next().await;
        assert_eq!(found(&round), ["10.0.0.2:9000", "[fd00::1]:9000"], "{trouble:?}");
        assert_eq!(round.outcome, Outcome::Failed);
        assert!(round.error.unwrap().starts_with("AAAA of w.example.: "), "{trouble:?}");
        assert!(started.elapsed() < ROUND_MAX + FLOOR * 8, "{trouble:?} took {:?}", started.elapsed());
    }
    // AAAA is gone, and A says so: that is an answer.
    server.say("w.example.", RecordType::AAAA, Reply::Records(vec![], 0));
    assert_eq!(found(&source.next().await), ["10.0.0.2:9000"]);
    server.say("w.example.", RecordType::A, Reply::Code(ResponseCode::ServFail));
    let round = source.next().await;
    assert_eq!((found(&round), round.outcome), (vec!["10.0.0.2:9000".to_owned()], Outcome::Failed));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_gone_is_believed_after_a_while_and_not_when_it_flaps() {
    let server = Server::start().await;
    server.addresses("w.example.", &["10.0.0.1"], 0);
    let mut source = by_address(&server);
    source.next().await;
    for _ in 0..3 {
        server.say("w.example.", RecordType::A, Reply::Code(ResponseCode::NXDomain));
        let round = source.next().await;
        assert_eq!((round.endpoints, round.outcome), (None, Outcome::Empty));
        assert!(round.error.unwrap().contains("w.example. does not exist"));
        server.addresses("w.example.", &["10.0.0.1"], 0);
        assert_eq!(source.next().await.outcome, Outcome::Good);
    }
    server.say("w.example.", RecordType::A, Reply::Code(ResponseCode::NXDomain));
    let gone = Instant::now();
    loop {
        let round = source.next().await;
        if let Some(endpoints) = round.endpoints {
            assert_eq!((endpoints.len(), round.outcome), (0, Outcome::Empty));
            break;
        }
        assert!(gone.elapsed() < Duration::from_secs(20));
    }
    assert!(gone.elapsed() >= Duration::from_secs(1), "{:?}", gone.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn services_have_their_targets_addresses_and_ports_of_the_lowest_priority_there_is() {
    let server = Server::start().await;
    let service = "_http._tcp.w.example.";
    let mut source = source(&server, service, Record::Service);
    server.say(
        service,
        RecordType::SRV,
        Reply::Records(
            vec![
                srv(10, 9001, "a.example."),
                srv(10, 9002, "A.example."),
                srv(10, 9003, "b.example."),
                srv(20, 9009, "c.example."),
            ],
            0,
        ),
    );
    server.addresses("a.example.", &["10.0.0.1"], 60);
    server.addresses("b.example.", &["10.0.0.2"], 60);
    server.addresses("c.example.", &["10.0.0.3"], 60);
    assert_eq!(found(&source.next().await), ["10.0.0.1:9001", "10.0.0.1:9002", "10.0.0.2:9003"]);
    // One target's addresses cannot be had: they are as before.
    server.say("b.example.", RecordType::A, Reply::Code(ResponseCode::ServFail));
    server.addresses("a.example.", &["10.0.0.9"], 60);
    let round = source.next().await;
    assert_eq!(found(&round), ["10.0.0.2:9003", "10.0.0.9:9001", "10.0.0.9:9002"]);
    assert!(round.error.unwrap().contains("b.example."));
    // Nobody of the first priority has an address.
    server.say("a.example.", RecordType::A, Reply::Code(ResponseCode::NXDomain));
    server.say("b.example.", RecordType::A, Reply::Records(vec![], 60));
    assert_eq!(found(&source.next().await), ["10.0.0.3:9009"]);
    // "No such service" is an empty answer; port 0 is nobody.
    server.say(service, RecordType::SRV, Reply::Records(vec![srv(0, 9000, "."), srv(0, 0, "c.example.")], 0));
    let round = source.next().await;
    assert_eq!((round.endpoints, round.outcome), (None, Outcome::Empty));
}

#[tokio::test(flavor = "multi_thread")]
async fn large_answers_come_by_tcp_too_large_ones_are_refused_and_sinkholes_are_no_workers() {
    let server = Server::start().await;
    let many = |count: u32| {
        let records =
            (0..count).map(|n| ip(&std::net::Ipv4Addr::from(0x0a00_0001 + n).to_string())).collect();
        Reply::Records(records, 0)
    };
    server.say("w.example.", RecordType::A, many(1000));
    let mut source = by_address(&server);
    assert_eq!(found(&source.next().await).len(), 1000);
    assert!(server.by_tcp() > 0);
    // No message holds more than a gateway takes, but two do.
    server.say("w.example.", RecordType::A, many(2500));
    let records = (0..1600).map(|n| ip(&format!("fd00::{n:x}"))).collect();
    server.say("w.example.", RecordType::AAAA, Reply::Records(records, 0));
    let round = source.next().await;
    assert_eq!((round.endpoints.is_none(), round.outcome), (true, Outcome::Refused), "{:?}", round.error);
    assert_eq!(round.error.unwrap(), "4100 addresses are too many; at most 4096");
    server.say("w.example.", RecordType::AAAA, Reply::Records(vec![], 0));
    server.addresses("w.example.", &["0.0.0.0", "224.0.0.1", "255.255.255.255", "10.0.0.1"], 0);
    let round = source.next().await;
    assert_eq!(found(&round), ["10.0.0.1:9000"]);
    assert!(round.error.unwrap().contains("is no address of a worker"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_server_is_waited_for_so_long_and_no_longer() {
    let server = Server::start().await;
    server.addresses("w.example.", &["10.0.0.1"], 0);
    server.delay(Duration::from_millis(700));
    let mut source = by_address(&server);
    assert_eq!(found(&source.next().await), ["10.0.0.1:9000"]);
    server.delay(Duration::from_secs(60));
    let started = Instant::now();
    let round = source.next().await;
    assert_eq!((found(&round), round.outcome), (vec!["10.0.0.1:9000".to_owned()], Outcome::Failed));
    assert!(started.elapsed() < ROUND_MAX + Duration::from_secs(3), "{:?}", started.elapsed());
}

/// Two workers at one port of two addresses, which one name can stand for.
async fn twins() -> (Fake, Fake) {
    let first = Fake::start("aws", "w1").await;
    let second = SocketAddr::from(([127, 0, 0, 2], first.address.port()));
    (first, Fake::start_at(second, "aws", "w2").await)
}

fn discover(server: &Server, what: &str) -> String {
    format!(
        "discover = {{ {what}, resolver = \"{}\", min_ttl = \"100ms\", max_ttl = \"1s\", empty_after = \"1s\" }}\n",
        server.address
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_follows_a_name_and_lets_a_worker_that_left_finish() {
    let (server, (first, second)) = (Server::start().await, twins().await);
    server.addresses("w.example.", &["127.0.0.1"], 0);
    let port = first.address.port();
    let file = pools(&[])
        + "[[pools]]\nname = \"aws\"\n"
        + &discover(&server, &format!("dns = \"w.example.\", port = {port}"));
    let gateway = Gateway::start(&file).await;
    gateway.healthy(1).await;
    assert_eq!(gateway.submit("{}").await.status(), StatusCode::ACCEPTED, "at once when it is ready");

    first.behave(Behaviour::Slow(Duration::from_secs(2)));
    let submit = gateway.client.post(gateway.url("/process")).body("{}").send();
    let in_flight = tokio::spawn(submit);
    eventually("the worker has the job", || async { first.submits().len() == 2 }).await;
    server.addresses("w.example.", &["127.0.0.2"], 0);
    let only = |address: SocketAddr| {
        let gateway = &gateway;
        move || async move {
            let status = gateway.status().await;
            let workers = status["pools"][0]["workers"].as_array().unwrap();
            workers.len() == 1
                && workers[0]["address"] == address.to_string()
                && workers[0]["healthy"] == true
        }
    };
    eventually("the second worker is the only one", only(second.address)).await;
    assert_eq!(gateway.submit("{}").await.status(), StatusCode::ACCEPTED);
    assert_eq!((first.submits().len(), second.submits().len()), (2, 1), "no new job for who has left");
    assert_eq!(in_flight.await.unwrap().unwrap().status(), StatusCode::ACCEPTED);

    // The server is in trouble: everything goes on, and the operator sees why.
    server.say("w.example.", RecordType::A, Reply::Code(ResponseCode::ServFail));
    eventually("the error is shown", || async {
        let source = gateway.status().await["pools"][0]["source"].clone();
        source["error"].as_str().is_some_and(|error| error.contains("Server Failure"))
            && source["good_age_s"].as_f64().is_some()
            && source["name"] == format!("dns w.example. port {port}")
    })
    .await;
    let (_, table, _) = check(&["status", "--admin", &gateway.admin.to_string()]);
    let line = table.lines().find(|line| line.starts_with("source: ")).unwrap_or_else(|| panic!("{table}"));
    assert!(
        line.starts_with(&format!("source: aws from dns w.example. port {port}: 1 endpoint, good answer"))
    );
    assert!(line.contains("Server Failure"), "{line}");
    let (_, checked, _) = check(&["check", gateway.file().to_str().unwrap()]);
    let wants = format!("ok, 1 pool, 0 endpoints, aws from dns w.example. port {port}");
    assert!(checked.contains(&wants), "{checked}");
    assert_eq!(gateway.submit("{}").await.status(), StatusCode::ACCEPTED);
    let metrics = gateway.metrics().await;
    assert_eq!(gauge(&metrics, "millrace_gateway_discovery_endpoints{pool=\"aws\",source=\"dns\"}"), 1.0);
    assert!(
        gauge(&metrics, "millrace_gateway_discovery_lookups_total{pool=\"aws\",result=\"failed\"}") >= 1.0
    );
    assert!(gauge(&metrics, "millrace_gateway_discovery_last_good_answer_age_seconds{pool=\"aws\"}") > 0.0);

    // The name is gone: so are the workers, after a while.
    server.say("w.example.", RecordType::A, Reply::Code(ResponseCode::NXDomain));
    eventually("the pool is empty", || async {
        gateway.status().await["pools"][0]["workers"].as_array().unwrap().is_empty()
    })
    .await;
    assert_eq!(gateway.submit("{}").await.status(), StatusCode::SERVICE_UNAVAILABLE);
    server.addresses("w.example.", &["127.0.0.1"], 0);
    first.behave(Behaviour::Accept);
    eventually("the first worker is back", only(first.address)).await;
    assert_eq!(gateway.submit("{}").await.status(), StatusCode::ACCEPTED);
}

#[tokio::test(flavor = "multi_thread")]
async fn sources_change_under_load_and_no_request_fails() {
    let (server, (first, second)) = (Server::start().await, twins().await);
    let port = first.address.port();
    server.addresses("a.example.", &["127.0.0.1", "127.0.0.2"], 0);
    server.say(
        "_http._tcp.b.example.",
        RecordType::SRV,
        Reply::Records(vec![srv(1, port, "one.example."), srv(1, port, "two.example.")], 0),
    );
    server.addresses("one.example.", &["127.0.0.1"], 0);
    server.addresses("two.example.", &["127.0.0.2"], 0);
    let head = pools(&[]) + "[[pools]]\nname = \"aws\"\n";
    let listed = format!("{head}endpoints = [\"{}\", \"{}\"]\n", first.address, second.address);
    let by_name = head.clone() + &discover(&server, &format!("dns = \"a.example.\", port = {port}"));
    let by_service = head.clone() + &discover(&server, "dns_srv = \"_http._tcp.b.example.\"");
    let nobody = head
        + &discover(&server, "dns = \"nobody.example.\", port = 1")
            .replace("empty_after = \"1s\"", "empty_after = \"1h\"");
    let gateway = Gateway::start(&listed).await;
    gateway.healthy(2).await;
    let load = gateway.load(2);
    for file in [&by_name, &by_service, &nobody, &by_service, &listed, &by_name] {
        gateway.write(file);
        let reloaded = gateway.reload().await;
        assert_eq!(reloaded.status(), StatusCode::OK);
        let dynamic = file != &listed;
        eventually("the source has been asked", || async {
            let source = gateway.status().await["pools"][0]["source"].clone();
            let asked = source["error"].is_string() || source["good_age_s"].is_number();
            if dynamic { asked } else { source.is_null() }
        })
        .await;
        gateway.healthy(2).await;
    }
    // One of two comes and goes with every answer.
    for n in 0..6 {
        let questions = server.questions();
        server.addresses(
            "a.example.",
            if n % 2 == 0 { &["127.0.0.1"] } else { &["127.0.0.1", "127.0.0.2"] },
            0,
        );
        eventually("it is asked again", || async { server.questions() >= questions + 4 }).await;
    }
    let (requests, failed) = load.stop().await;
    assert_eq!(failed, Vec::<String>::new(), "of {requests}");
    assert!(requests > 50, "{requests} requests are no load");
    assert_eq!(gateway.exit_code(), None);
}
