//! What the benchmarks share.

pub mod tickets;

/// The business that the benchmarks of an edge use. Limits so high that none is met.
pub const DECLARATION: &str = r"
apiVersion: wirepost.dev/v1alpha1
kind: WsBusiness
metadata: {name: bench, namespace: bench}
spec:
  clientTypes: [app]
  routes:
    - {messageType: up, sendType: ClientToServer, queue: {name: up}}
    - {messageType: down, sendType: ServerToClient, to: [app], audience: Everyone}
  limits: {messagesPerSecond: 10000, burst: 20000}
";
