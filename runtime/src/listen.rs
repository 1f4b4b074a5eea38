//! Listening sockets.

use std::io;
use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpSocket};

/// How many connections may wait to be accepted; the kernel may hold it to less (`net.core.somaxconn`, 4096 by default).
///
/// What finds no place is dropped without a word, and its client tries again after a second. A gateway connects anew
/// to every worker when many requests come at once, and the 128 places that are usual are gone before a busy machine
/// accepts the first.
pub const BACKLOG: u32 = 4096;

/// Listens there, with room for [`BACKLOG`] connections; an address that was in use until now can be had at once.
///
/// # Errors
/// When the address cannot be had.
///
/// # Panics
/// Outside a Tokio runtime with I/O.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn connections_wait_while_nobody_accepts() {
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = listener.local_addr().unwrap();
        let mut waiting = Vec::new();
        // More than the usual 128; what finds no place is not told so, and its connect would last a second at least.
        for _ in 0..400 {
            let connect = tokio::time::timeout(Duration::from_secs(20), TcpStream::connect(address));
            waiting.push(connect.await.expect("there is room").unwrap());
        }
        assert_eq!(bind(address).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }
}
