//! What a scripted broker does that a real one does not do on demand.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::*;

const BEAT: Duration = Duration::from_mins(1);

struct Broker(TcpStream);

impl Broker {
    /// With a connection that has a channel.
    async fn accept(listener: &TcpListener) -> Self {
        let mut broker = Self(listener.accept().await.unwrap().0);
        broker.0.read_exact(&mut [0; 8]).await.unwrap();
        broker.send(0, method::START, &[]).await;
        assert_eq!(broker.read().await, method::START_OK);
        broker.send(0, method::TUNE, &[0; 8]).await;
        assert_eq!((broker.read().await, broker.read().await), (method::TUNE_OK, method::OPEN));
        broker.send(0, method::OPEN_OK, &[]).await;
        assert_eq!(broker.read().await, method::CHANNEL_OPEN);
        broker.send(CHANNEL, method::CHANNEL_OPEN_OK, &[]).await;
        broker
    }

    async fn send(&mut self, channel: u16, method: (u16, u16), args: &[u8]) {
        let mut frame = BytesMut::new();
        codec::put_method(&mut frame, channel, method, args);
        self.0.write_all(&frame).await.unwrap();
    }

    async fn deliver(&mut self, tag: u8) {
        let args = [&[1, b'c'][..], &[0, 0, 0, 0, 0, 0, 0, tag], &[0, 0, 0]].concat();
        self.send(CHANNEL, method::DELIVER, &args).await;
        let mut content = BytesMut::new();
        frames_of_content(&mut content, CHANNEL, &[0, 0], b"{}", MAX_FRAME as usize);
        self.0.write_all(&content).await.unwrap();
    }

    /// The method of the next frame.
    async fn read(&mut self) -> (u16, u16) {
        let mut head = [0; 7];
        self.0.read_exact(&mut head).await.unwrap();
        let length = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
        let mut rest = vec![0; length + 1];
        self.0.read_exact(&mut rest).await.unwrap();
        (u16::from_be_bytes([rest[0], rest[1]]), u16::from_be_bytes([rest[2], rest[3]]))
    }
}

async fn tag(connection: &mut Connection) -> u64 {
    match timeout(BEAT, connection.recv()).await.unwrap().unwrap() {
        Incoming::Delivery(message) => message.delivery_tag,
        Incoming::Cancelled => panic!("no delivery"),
    }
}

/// A broker can be slow with its metadata and deliver as ever.
#[tokio::test]
async fn a_binding_that_is_not_answered_delays_no_delivery_and_is_not_asked_for_twice() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("amqp://u:p@{}", listener.local_addr().unwrap());
    let endpoint = Endpoint::new(uri.parse().unwrap(), None, "test").unwrap();
    let (connection, mut broker) = tokio::join!(Connection::open(&endpoint, BEAT), Broker::accept(&listener));
    let mut connection = connection.unwrap();
    for number in 1..=3_u8 {
        connection.bind_again("q", "e", "").await.unwrap();
        broker.deliver(number).await;
        assert_eq!(tag(&mut connection).await, u64::from(number));
        connection.ack(u64::from(number), false).await.unwrap();
    }
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push(broker.read().await);
    }
    assert_eq!(seen, [method::QUEUE_BIND, method::ACK, method::ACK, method::ACK]);
    broker.send(CHANNEL, method::QUEUE_BIND_OK, &[]).await;
    broker.deliver(4).await;
    assert_eq!(tag(&mut connection).await, 4);
    connection.bind_again("q", "e", "").await.unwrap();
    assert_eq!(broker.read().await, method::QUEUE_BIND);
}
