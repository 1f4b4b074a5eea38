//! Names into addresses that may be connected to, and into no others: what was checked is what is connected to, because
//! nobody looks a second time.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use futures::future::BoxFuture;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::address::Allowed;

/// Asks for a name's addresses.
pub(crate) type Lookup =
    Arc<dyn Fn(String) -> BoxFuture<'static, std::io::Result<Vec<IpAddr>>> + Send + Sync>;

/// Resolves names for a client.
pub(crate) struct Resolver {
    allowed: Allowed,
    lookup: Lookup,
}

impl Resolver {
    /// Asks the system.
    pub(crate) fn system(allowed: Allowed) -> Self {
        Self::asking(allowed, Arc::new(|name| Box::pin(ask_the_system(name))))
    }

    /// Asks somebody else.
    pub(crate) fn asking(allowed: Allowed, lookup: Lookup) -> Self {
        Self { allowed, lookup }
    }
}

async fn ask_the_system(name: String) -> std::io::Result<Vec<IpAddr>> {
    Ok(tokio::net::lookup_host((name, 0)).await?.map(|address| address.ip()).collect())
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (allowed, asked) = (self.allowed.clone(), (self.lookup)(name.as_str().to_owned()));
        Box::pin(async move {
            let (mut fine, mut refused) = (Vec::new(), None);
            for address in asked.await? {
                match allowed.check(address) {
                    Ok(()) => fine.push(SocketAddr::from((address, 0))),
                    Err(reason) => refused = Some(reason),
                }
            }
            match refused {
                Some(refused) if fine.is_empty() => Err(refused.into()),
                _ => Ok(Box::new(fine.into_iter()) as Addrs),
            }
        })
    }
}
