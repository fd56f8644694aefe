//! The API as its clients meet it, without a socket.
