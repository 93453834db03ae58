//! Sessions and tokens that are good no more, though their tickets say so: [`gate`] judges them. What every edge has to
//! know of it goes by the control stream of the installation, which each edge reads from its start before it admits
//! anyone, and follows.

pub mod follow;
pub mod gate;
pub mod known;
pub mod publish;
pub mod restore;
