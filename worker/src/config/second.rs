//! Whether this deployment can keep `dual`: a second cloud's bucket, and a job store that survives a cloud as well.
//!
//! What can be known from the settings alone is checked here. Whether the store's server really waits for a synchronous
//! standby is asked of it, at each copy: see [`crate::store::copies`].

use millrace_wire::PoolId;

use super::{Error, Settings};
use crate::objects::Places;

/// The pool whose bucket gets second copies, if there is one.
pub(super) fn pool(
    said: &Settings,
    own: &PoolId,
    store: &str,
    objects: &Places,
) -> Result<Option<PoolId>, Error> {
    let Some(second) = said.second_pool.clone() else { return Ok(None) };
    let refuse = |wants: &str| {
        let got = format!("{second}, for dual");
        Err(Error::Limits { setting: "--second-pool", got, wants: wants.to_owned() })
    };
    if second == *own {
        return refuse("another pool than --pool: a second copy beside the first one survives nothing");
    }
    if !store.starts_with("postgres:") && !store.starts_with("postgresql:") {
        return refuse(
            "left out with this --store: an embedded one is on one disk, and with its cloud all jobs are lost; \
             dual needs postgres:// with a synchronous standby in another cloud",
        );
    }
    if !said.store_replicated.unwrap_or(false) && !store.contains(',') {
        return refuse(
            "left out with a --store of one server: name its synchronous standby in another cloud, too, with a comma \
             between, or set --store-replicated if the one is a quorum across clouds",
        );
    }
    match objects.two_clouds(own, &second) {
        Ok(()) => Ok(Some(second)),
        Err(why) => refuse(&format!("left out with these --objects: {why}")),
    }
}
