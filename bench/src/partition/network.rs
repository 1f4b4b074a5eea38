//! Two network namespaces, a line between them that can be cut, and a way from here into each.
//!
//! Between the two lies a third one that forwards. To cut the line it forwards no more: what is sent is swallowed, nobody is
//! told, and connections hang as they do when a tunnel between clouds is gone.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// The first part of every name; the process id of who made it follows.
const PREFIX: &str = "millrace-";

/// The namespaces. Dropping this removes them, and with them every line.
#[derive(Debug)]
pub struct Network {
    id: String,
    /// `10.A.B`, where the last number is a multiple of four and the following three are ours, too.
    net: [u8; 3],
}

/// One of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Where the primary is at first.
    First,
    /// Where the standby is.
    Second,
}

impl Side {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::First, Self::Second];

    fn number(self) -> u8 {
        match self {
            Self::First => 0,
            Self::Second => 1,
        }
    }

    fn letter(self) -> &'static str {
        match self {
            Self::First => "a",
            Self::Second => "b",
        }
    }
}

impl Network {
    /// Makes them.
    ///
    /// # Errors
    /// This process may not, or `ip` is not installed: says what to do.
    pub fn make() -> Result<Self> {
        remove_those_of_the_dead();
        let pid = std::process::id();
        let net = [10, 64 + (pid / 64 % 64) as u8, (pid % 64 * 4) as u8];
        let network = Self { id: pid.to_string(), net };
        for name in network.names() {
            ip(&["netns", "add", &name]).context(
                "cannot make network namespaces: this test needs root (or CAP_NET_ADMIN and CAP_SYS_ADMIN) and iproute2; \
                 in a container run it with --privileged, and install what is missing with scripts/setup test",
            )?;
            ip(&["-n", &name, "link", "set", "lo", "up"])?;
        }
        let wan = network.wan();
        for side in Side::BOTH {
            let inside = network.name(side);
            let (far, near, host) =
                (network.device(side, "w"), network.device(side, "i"), network.device(side, "h"));
            ip(&["-n", &inside, "link", "add", &near, "type", "veth", "peer", "name", &far, "netns", &wan])?;
            network.up(&inside, &near, &network.address(side))?;
            network.up(&wan, &far, &network.of(side.number(), 1))?;
            ip(&["-n", &inside, "route", "add", "default", "via", &network.of(side.number(), 1)])?;
            let own = network.device(side, "o");
            ip(&["link", "add", &host, "type", "veth", "peer", "name", &own, "netns", &inside])?;
            let here = format!("{}/24", network.of(2 + side.number(), 1));
            ip(&["addr", "add", &here, "dev", &host])?;
            ip(&["link", "set", &host, "up"])?;
            network.up(&inside, &own, &network.entrance(side))?;
        }
        network.heal()?;
        Ok(network)
    }

    fn up(&self, inside: &str, device: &str, address: &str) -> Result<()> {
        ip(&["-n", inside, "addr", "add", &format!("{address}/24"), "dev", device])?;
        ip(&["-n", inside, "link", "set", device, "up"])
    }

    /// The namespace of a side.
    pub fn name(&self, side: Side) -> String {
        format!("{PREFIX}{}-{}", self.id, side.letter())
    }

    fn wan(&self) -> String {
        format!("{PREFIX}{}-w", self.id)
    }

    fn names(&self) -> [String; 3] {
        [self.name(Side::First), self.name(Side::Second), self.wan()]
    }

    fn device(&self, side: Side, end: &str) -> String {
        format!("mr{}{}{end}", self.id, side.letter())
    }

    fn of(&self, line: u8, host: u8) -> String {
        let [a, b, c] = self.net;
        format!("{a}.{b}.{}.{host}", c + line)
    }

    /// Where the other side reaches a side, over the line that can be cut.
    pub fn address(&self, side: Side) -> String {
        self.of(side.number(), 2)
    }

    /// Where we reach a side from here, past the line.
    pub fn entrance(&self, side: Side) -> String {
        self.of(2 + side.number(), 2)
    }

    /// All that is inside, in CIDR.
    pub fn cidr(&self) -> String {
        let [a, b, c] = self.net;
        format!("{a}.{b}.{c}.0/22")
    }

    /// Cuts the line between the two.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn cut(&self) -> Result<()> {
        self.forward("0")
    }

    /// Joins it.
    ///
    /// # Errors
    /// As [`Self::cut`].
    pub fn heal(&self) -> Result<()> {
        self.forward("1")
    }

    fn forward(&self, whether: &str) -> Result<()> {
        let set = format!("echo {whether} > /proc/sys/net/ipv4/ip_forward");
        ip(&["netns", "exec", &self.wan(), "sh", "-c", &set])
    }

    /// Takes every line to a side away. What is there answers nobody any more, and refuses nobody either.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn lose(&self, side: Side) -> Result<()> {
        let inside = self.name(side);
        ["o", "i"]
            .iter()
            .try_for_each(|end| ip(&["-n", &inside, "link", "set", &self.device(side, end), "down"]))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in self.names() {
            let _ = ip(&["netns", "del", &name]);
        }
    }
}

/// Removes namespaces that somebody made who was killed.
fn remove_those_of_the_dead() {
    let Ok(list) = run(&["netns", "list"]) else { return };
    for name in list.lines().filter_map(|line| line.split_whitespace().next()) {
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-'));
        if let Some((pid, _)) = owner.filter(|(pid, _)| pid.parse::<u32>().is_ok())
            && !Path::new("/proc").join(pid).exists()
        {
            let _ = ip(&["netns", "del", name]);
        }
    }
}

fn ip(args: &[&str]) -> Result<()> {
    run(args).map(drop)
}

fn run(args: &[&str]) -> Result<String> {
    // Debian has it where not everybody looks.
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new("ip").args(args).env("PATH", format!("{path}:/usr/sbin:/sbin")).output();
    let output = output.with_context(|| format!("run ip {}", args.join(" ")))?;
    if !output.status.success() {
        bail!("ip {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
