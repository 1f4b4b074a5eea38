//! A DNS server made of sockets: it answers from a table that the test changes, by UDP and TCP on one port.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, SRV};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio_util::sync::CancellationToken;

/// Most bytes of an answer by UDP, as servers have it.
const UDP_MAX: usize = 1232;

/// How the server answers a question.
#[derive(Debug, Clone)]
pub(crate) enum Reply {
    /// Records with a TTL in seconds.
    Records(Vec<RData>, u32),
    /// A code, and nothing else.
    Code(ResponseCode),
    /// Nothing at all.
    Silence,
    /// Bytes that are no DNS.
    Garbage,
}

/// Stops when dropped.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    table: Mutex<HashMap<(Name, RecordType), Reply>>,
    delay: Mutex<Duration>,
    questions: AtomicUsize,
    by_tcp: AtomicUsize,
    stop: CancellationToken,
}

pub(crate) fn ip(text: &str) -> RData {
    match text.parse().unwrap() {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    }
}

pub(crate) fn srv(priority: u16, port: u16, target: &str) -> RData {
    RData::SRV(SRV::new(priority, 1, port, Name::from_ascii(target).unwrap()))
}

impl Server {
    pub(crate) async fn start() -> Self {
        // A port that is free for one protocol may be taken for the other.
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let address = udp.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let stop = shared.stop.clone();
        tokio::spawn(stop.run_until_cancelled_owned(datagrams(udp, shared.clone())));
        let stop = shared.stop.clone();
        tokio::spawn(stop.run_until_cancelled_owned(streams(tcp, shared.clone())));
        Self { address, shared }
    }

    pub(crate) fn say(&self, name: &str, kind: RecordType, reply: Reply) {
        self.shared.table.lock().unwrap().insert((Name::from_ascii(name).unwrap(), kind), reply);
    }

    /// The A records of a name.
    pub(crate) fn addresses(&self, name: &str, ips: &[&str], ttl: u32) {
        self.say(name, RecordType::A, Reply::Records(ips.iter().map(|text| ip(text)).collect(), ttl));
    }

    /// From now on every answer comes that much later.
    pub(crate) fn delay(&self, delay: Duration) {
        *self.shared.delay.lock().unwrap() = delay;
    }

    pub(crate) fn questions(&self) -> usize {
        self.shared.questions.load(Ordering::SeqCst)
    }

    pub(crate) fn by_tcp(&self) -> usize {
        self.shared.by_tcp.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

/// What is not in the table exists and has no such records.
async fn answer(shared: &Shared, question: &[u8]) -> Option<Result<Message, Vec<u8>>> {
    shared.questions.fetch_add(1, Ordering::SeqCst);
    let delay = *shared.delay.lock().unwrap();
    tokio::time::sleep(delay).await;
    let question = Message::from_vec(question).ok()?;
    let query = question.queries.first()?.clone();
    let mut message = Message::new(question.metadata.id, MessageType::Response, OpCode::Query);
    message.add_query(query.clone());
    let key = (query.name().to_lowercase(), query.query_type());
    match shared.table.lock().unwrap().get(&key) {
        None => {}
        Some(Reply::Silence) => return None,
        Some(Reply::Garbage) => return Some(Err(vec![0xff; 40])),
        Some(Reply::Code(code)) => message.metadata.response_code = *code,
        Some(Reply::Records(records, ttl)) => {
            let record = |data: &RData| Record::from_rdata(query.name().clone(), *ttl, data.clone());
            message.add_answers(records.iter().map(record).collect::<Vec<_>>());
        }
    }
    Some(Ok(message))
}

async fn datagrams(socket: UdpSocket, shared: Arc<Shared>) {
    let socket = Arc::new(socket);
    let mut buffer = [0; 4096];
    while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
        let (question, shared, socket) = (buffer[..length].to_vec(), shared.clone(), socket.clone());
        tokio::spawn(async move {
            let bytes = match answer(&shared, &question).await {
                None => return,
                Some(Err(garbage)) => garbage,
                Some(Ok(message)) => {
                    let bytes = message.to_vec().unwrap();
                    if bytes.len() > UDP_MAX { message.truncate().to_vec().unwrap() } else { bytes }
                }
            };
            let _ = socket.send_to(&bytes, from).await;
        });
    }
}

async fn streams(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let shared = shared.clone();
        tokio::spawn(async move {
            while let Ok(length) = stream.read_u16().await {
                let mut question = vec![0; length.into()];
                if stream.read_exact(&mut question).await.is_err() {
                    return;
                }
                shared.by_tcp.fetch_add(1, Ordering::SeqCst);
                let bytes = match answer(&shared, &question).await {
                    None => return,
                    Some(Err(garbage)) => garbage,
                    Some(Ok(message)) => message.to_vec().unwrap(),
                };
                let length = u16::try_from(bytes.len()).unwrap();
                if stream.write_u16(length).await.is_err() || stream.write_all(&bytes).await.is_err() {
                    return;
                }
            }
        });
    }
}
