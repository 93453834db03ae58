//! A minimal publisher of the stream protocol: for entries that no AMQP publisher makes.

use anyhow::{Result, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use wirepost_testing::broker::Vhost;

use crate::support::{USER, host_of};

pub(crate) struct RawPublisher {
    socket: TcpStream,
    correlation: u32,
    sequence: u64,
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u16).to_be_bytes(), text.as_bytes()].concat()
}

/// One message as an entry of a chunk.
pub(crate) fn entry(message: &[u8]) -> Vec<u8> {
    [&(message.len() as u32).to_be_bytes(), message].concat()
}

/// Several messages as one entry; `compression` 0 is none, 1 is gzip (the broker does not look inside).
pub(crate) fn sub_batch(compression: u8, messages: &[&[u8]]) -> Vec<u8> {
    let data: Vec<u8> = messages.iter().flat_map(|m| entry(m)).collect();
    let length = (data.len() as u32).to_be_bytes();
    [&[0x80 | compression << 4][..], &(messages.len() as u16).to_be_bytes(), &length, &length, &data].concat()
}

/// An AMQP 1.0 message with one data section.
pub(crate) fn data_message(body: &[u8]) -> Vec<u8> {
    [&[0x00, 0x53, 0x75, 0xb0][..], &(body.len() as u32).to_be_bytes(), body].concat()
}

impl RawPublisher {
    pub(crate) async fn connect(vhost: &Vhost, stream: &str) -> Result<Self> {
        let socket = TcpStream::connect(host_of(&vhost.broker.stream)).await?;
        let mut publisher = Self { socket, correlation: 0, sequence: 0 };
        publisher.call(0x11, &0u32.to_be_bytes()).await?;
        publisher.call(0x12, &[]).await?;
        let plain = format!("\0{USER}\0{USER}");
        publisher.call(0x13, &[string("PLAIN"), entry(plain.as_bytes())].concat()).await?;
        let tune = publisher.receive(0x14).await?;
        publisher.send(0x14, &tune).await?;
        publisher.call(0x15, &string(&vhost.name)).await?;
        publisher.call(0x01, &[vec![0], string(""), string(stream)].concat()).await?;
        Ok(publisher)
    }

    /// Publishes entries in order and waits for the confirms.
    pub(crate) async fn publish(&mut self, entries: &[Vec<u8>]) -> Result<()> {
        let mut body = vec![0];
        body.extend((entries.len() as u32).to_be_bytes());
        for entry in entries {
            self.sequence += 1;
            body.extend(self.sequence.to_be_bytes());
            body.extend(entry);
        }
        self.send(0x02, &body).await?;
        let mut confirmed = 0;
        while confirmed < entries.len() {
            let confirm = self.receive(0x03).await?;
            confirmed += u32::from_be_bytes(confirm[1..5].try_into()?) as usize;
        }
        Ok(())
    }

    async fn call(&mut self, key: u16, body: &[u8]) -> Result<()> {
        self.correlation += 1;
        self.send(key, &[&self.correlation.to_be_bytes(), body].concat()).await?;
        let answer = self.receive(0x8000 | key).await?;
        ensure!(answer[4..6] == [0, 1], "call {key:#x}: {answer:?}");
        Ok(())
    }

    async fn send(&mut self, key: u16, body: &[u8]) -> Result<()> {
        let frame = [&key.to_be_bytes(), &1u16.to_be_bytes(), body].concat();
        Ok(self.socket.write_all(&entry(&frame)).await?)
    }

    async fn receive(&mut self, wanted: u16) -> Result<Vec<u8>> {
        loop {
            let mut frame = vec![0; self.socket.read_u32().await? as usize];
            self.socket.read_exact(&mut frame).await?;
            if frame[..2] == wanted.to_be_bytes() {
                return Ok(frame.split_off(4));
            }
        }
    }
}
