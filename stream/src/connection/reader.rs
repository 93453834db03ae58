//! One subscription on a connection: its id, its queue of chunks, its end.

use std::sync::Arc;

use bytes::{BufMut, BytesMut};
use tokio::sync::mpsc;

use super::{Connection, Delivery, Id, Specification};
use crate::{
    codec::{key, put_string},
    error::Error,
    flow::{Budget, Flow, lock},
};

/// A subscription id on a connection. Dropping it frees the id.
#[derive(Debug)]
pub(crate) struct Reservation {
    connection: Arc<Connection>,
    id: u8,
}

impl Reservation {
    pub(super) const fn new(connection: Arc<Connection>, id: u8) -> Self {
        Self { connection, id }
    }

    pub(crate) fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// Subscribes with `credits` chunks in flight.
    ///
    /// Cancel safe: dropping the future or the result unsubscribes, whether or not the broker has subscribed us.
    pub(crate) async fn subscribe(
        self,
        stream: &Arc<str>,
        from: Specification,
        credits: u16,
        budget: &Arc<Budget>,
    ) -> Result<StreamReader, Error> {
        let credits = credits.max(1);
        let shared = Arc::clone(&self.connection.shared);
        // Room for the final `Ended` besides the credits.
        let (queue, deliveries) = mpsc::channel(usize::from(credits) + 1);
        let flow = Arc::new(Flow::new(Arc::clone(budget), Arc::downgrade(&shared), self.id, credits));
        {
            let mut state = lock(&shared.state);
            if let Some(error) = &state.closed {
                return Err(error.clone());
            }
            let entry = Id::Subscribed { stream: Arc::clone(stream), queue, flow: Arc::clone(&flow) };
            state.ids.insert(self.id, entry);
        }
        let reader = StreamReader { deliveries, flow, reservation: self };
        let id = reader.reservation.id;
        let request = |b: &mut BytesMut| {
            b.put_u8(id);
            put_string(b, stream);
            match from {
                Specification::First => b.put_u16(1),
                Specification::Last => b.put_u16(2),
                Specification::Offset(offset) => {
                    b.put_u16(4);
                    b.put_u64(offset);
                }
            }
            b.put_u16(credits);
        };
        match shared.call(key::SUBSCRIBE, "subscribe", request).await {
            Ok(_) => Ok(reader),
            Err(error) => {
                if let Error::Refused { .. } = error {
                    // The broker has no such subscription: the id is free without a request.
                    lock(&shared.state).ids.insert(id, Id::Reserved);
                }
                Err(error)
            }
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.connection.shared.retire(self.id);
    }
}

/// A subscription on a connection. Dropping it unsubscribes.
#[derive(Debug)]
pub(crate) struct StreamReader {
    deliveries: mpsc::Receiver<Delivery>,
    flow: Arc<Flow>,
    reservation: Reservation,
}

impl StreamReader {
    /// The next chunk; an error is final. Cancel safe.
    pub(crate) async fn next(&mut self) -> Result<Delivery, Error> {
        match self.deliveries.recv().await {
            Some(Delivery::Ended(code)) => Err(Error::SubscriptionEnded(code)),
            Some(delivery) => Ok(delivery),
            None => Err(self.reservation.connection.shared.reason()),
        }
    }

    pub(crate) const fn connection(&self) -> &Arc<Connection> {
        &self.reservation.connection
    }

    /// Whether the broker may send a chunk and none is waiting here.
    pub(crate) fn is_starved(&self) -> bool {
        self.deliveries.is_empty() && self.flow.may_send()
    }
}

impl Drop for StreamReader {
    fn drop(&mut self) {
        self.flow.close();
    }
}
