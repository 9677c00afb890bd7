//! The TCP connections that the kernel knows of, to see that none is left over.

use std::net::SocketAddr;

/// How many sockets are connected to this address.
pub fn connected_to(address: SocketAddr) -> usize {
    count(|_, remote| remote == kernels(address))
}

/// How many connections the server at this address has.
pub fn connected_at(address: SocketAddr) -> usize {
    count(|local, _| local == kernels(address))
}

/// An IPv4 address as /proc/net/tcp has it: the bytes of a number in this machine's order.
fn kernels(address: SocketAddr) -> String {
    let SocketAddr::V4(address) = address else { panic!("an IPv4 address") };
    format!("{:08X}:{:04X}", u32::from_ne_bytes(address.ip().octets()), address.port())
}

/// Sockets that a process holds: ESTABLISHED or, where the peer has closed its side, CLOSE_WAIT.
fn count(wanted: impl Fn(&str, &str) -> bool) -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("a Linux kernel");
    let open = |line: &&str| {
        let fields: Vec<&str> = line.split_whitespace().take(4).collect();
        matches!(fields[..], [_, local, remote, "01" | "08"] if wanted(local, remote))
    };
    table.lines().filter(open).count()
}
