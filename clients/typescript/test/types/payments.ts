// Written by `wirepost generate typescript`. Do not edit: generate it again.

/** Content of qr.refresh. */
export type PaymentsQrRefresh = { "qrId": string };

/** What clients of type h5 of the business payments send and receive. */
export interface PaymentsH5 {
  send: {
    "qr.refresh": PaymentsQrRefresh;
  };
  receive: {
    "cart.share": unknown;
    "payment.completed": unknown;
  };
}

/** What clients of type app of the business payments send and receive. */
export interface PaymentsApp {
  send: {
    "cart.share": unknown;
  };
  receive: {
    "payment.completed": unknown;
  };
}

/** What clients of type pos of the business payments send and receive. */
export interface PaymentsPos {
  send: {
  };
  receive: {
    "till.notice": unknown;
  };
}
