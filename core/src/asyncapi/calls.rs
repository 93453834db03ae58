//! The HTTP calls of the edges.

use serde_json::{Value, json};

use super::{
    document::{Action, Document, Operation, reference},
    envelope::{EXAMPLE_ID, EXAMPLE_TIME, Form, Message, TIME},
    server::Base,
};
use crate::{
    SendType,
    edge_config::{BusinessConfig, Jwks, JwtConfig},
    envelope::{MAX_BATCH, MAX_ID, MAX_LIST},
};

/// The edges' HTTP interface.
const SERVER: &str = "calls";
/// The security scheme of the business's services.
const API_KEY: &str = "apiKey";
/// The same key in another header.
const BEARER_KEY: &str = "apiKeyBearer";
/// The security scheme of clients.
const JWT: &str = "jwt";
/// The message of every refusal.
const REFUSED: &str = "refused";

/// The token call, which clients make too.
pub(super) fn add(business: &BusinessConfig, base: &Base<'_>, document: &mut Document) {
    let mut server = base.server(if base.secure { "https" } else { "http" });
    server["title"] = json!("Edges, by HTTP");
    server["description"] =
        json!("Answers have the form {result, description, data}; result is 0, or the HTTP status and two digits.");
    document.server(SERVER, server);
    document.security_scheme(
        API_KEY,
        json!({
            "type": "httpApiKey", "in": "header", "name": "X-Api-Key",
            "description": "For services of the business: the key api-key of the Secret that spec.access.secretName names.",
        }),
    );
    document.security_scheme(
        BEARER_KEY,
        json!({"type": "http", "scheme": "bearer", "description": "The same key as a bearer token."}),
    );
    if let Some(jwt) = &business.auth.jwt {
        document.security_scheme(
            JWT,
            json!({"type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": jwt_description(jwt)}),
        );
    }
    document.message(REFUSED, refused());
    token(business, base, document);
}

/// The calls of services.
pub(super) fn add_for_services(business: &BusinessConfig, messages: &[Message<'_>], document: &mut Document) {
    push(business, messages, document);
    revoke(business, document);
    presence(business, document);
}

fn jwt_description(jwt: &JwtConfig) -> String {
    let keys = match &jwt.jwks {
        Jwks::Uri(uri) => format!("keys: {uri}"),
        Jwks::Discovery => "keys: by the issuer's discovery document".to_owned(),
        Jwks::Inline(_) => "keys: in the declaration".to_owned(),
    };
    let claims = &jwt.claims;
    let mut text = format!(
        "For clients: a token of the issuer {} for {}; {keys}. Claims: {} is the identity",
        jwt.issuer,
        jwt.audiences.join(" or "),
        claims.unique_id
    );
    for (claim, what) in [(&claims.client_type, "the client type"), (&claims.tags, "the tags")] {
        if let Some(claim) = claim {
            text = format!("{text}, {claim} is {what}");
        }
    }
    text + "."
}

fn token(business: &BusinessConfig, base: &Base<'_>, document: &mut Document) {
    let request = "token.request";
    let answer = "token.answer";
    document.message(
        request,
        json!({"name": "token", "title": "Token call", "summary": "Asks for the URL of a socket. It has no body."}),
    );
    let example = base.url(("ws", "wss"), "/socket/AQBgNGkUSAwDm0M3");
    document.message(
        answer,
        ok(
            "The URL to connect to; the last part of its path is the ticket, a secret",
            &json!({"type": "string", "format": "uri", "pattern": "^wss?://.+/socket/.+$"}),
            &json!(example),
        ),
    );
    let for_services = business.auth.jwt.is_none();
    let mut query = json!({
        "type": "object",
        "properties": {
            "uniqueId": {"type": "string", "minLength": 1, "maxLength": 256, "description": "The identity. With a JWT it is the token's."},
            "clientType": {"type": "string", "enum": business.client_types},
            "tags": {"type": "string", "description": format!("Up to {MAX_LIST}, with commas. Not with a JWT.")},
        },
    });
    if for_services {
        query["required"] = json!(["uniqueId", "clientType"]);
    }
    let keys = [request, answer, REFUSED].map(str::to_owned);
    document.channel("token", SERVER, &keys, channel(business, "token", "Token call"));
    document.operation(
        "token",
        Operation {
            action: Action::Receive,
            channel: "token",
            summary: "A client, or a service for it, gets the URL of a socket".to_owned(),
            messages: vec![request.to_owned()],
            replies: vec![answer.to_owned(), REFUSED.to_owned()],
            security: if for_services { &[API_KEY, BEARER_KEY] } else { &[API_KEY, BEARER_KEY, JWT] },
            bindings: http("GET", query),
        },
    );
}

fn push(business: &BusinessConfig, messages: &[Message<'_>], document: &mut Document) {
    let pushed: Vec<String> = messages
        .iter()
        .filter(|message| message.route.send_type == SendType::ServerToClient)
        .map(|message| message.add(Form::Pushed, document))
        .collect();
    if pushed.is_empty() {
        return;
    }
    let (batch, answer, answers) = ("push.batch", "push.answer", "push.answers");
    let any: Vec<Value> = pushed.iter().map(|key| reference(&format!("#/components/messages/{key}/payload"))).collect();
    document.message(
        batch,
        json!({
            "name": batch, "title": "Several pushes", "summary": "Pushes that are published in order",
            "contentType": "application/json",
            "payload": {"type": "array", "minItems": 1, "maxItems": MAX_BATCH, "items": {"anyOf": any}},
        }),
    );
    let result = json!({
        "type": "object",
        "required": ["result", "description", "retryable", "mayHaveArrived"],
        "properties": {
            "result": {"type": "integer", "description": "0: the broker has it."},
            "id": {"type": "string", "maxLength": MAX_ID, "description": "The envelope's id, given or made."},
            "description": {"type": "string"},
            "field": {"type": "string", "description": "The field at fault."},
            "retryable": {"type": "boolean"},
            "mayHaveArrived": {"type": "boolean"},
        },
    });
    let one = json!({"result": 0, "id": EXAMPLE_ID, "description": "ok", "retryable": false, "mayHaveArrived": false});
    document.message(answer, ok("The push is confirmed", &result, &one));
    document.message(
        answers,
        json!({
            "name": answers, "title": "Results of several pushes", "summary": "A result for each, in order",
            "contentType": "application/json",
            "payload": {
                "type": "object",
                "required": ["result", "description", "data"],
                "properties": {
                    "result": {"type": "integer", "description": "That of all; 20700 where they differ."},
                    "description": {"type": "string"},
                    "data": {"type": "array", "items": result},
                },
            },
            "examples": [{"name": answers, "payload": {"result": 0, "description": "ok", "data": [one]}}],
        }),
    );
    let mut requests = pushed.clone();
    requests.push(batch.to_owned());
    let replies = vec![answer.to_owned(), answers.to_owned(), REFUSED.to_owned()];
    let keys: Vec<String> = requests.iter().chain(&replies).cloned().collect();
    document.channel("messages", SERVER, &keys, channel(business, "messages", "Push messages"));
    document.operation(
        "push.http",
        Operation {
            action: Action::Receive,
            channel: "messages",
            summary: "Services push to clients; the answer is the broker's confirm".to_owned(),
            messages: requests,
            replies,
            security: &[API_KEY, BEARER_KEY],
            bindings: http("POST", Value::Null),
        },
    );
}

fn revoke(business: &BusinessConfig, document: &mut Document) {
    let (request, answer) = ("revoke.request", "revoke.answer");
    document.message(
        request,
        json!({"name": "revoke", "title": "Revoking sessions", "summary": "Ends sessions before their time. It has no body."}),
    );
    document.message(
        answer,
        ok(
            "The broker has it; every edge follows within a second",
            &json!({"type": "object", "properties": {"issuedBefore": {"type": "integer", "description": TIME}}}),
            &json!({"issuedBefore": EXAMPLE_TIME}),
        ),
    );
    let query = json!({
        "type": "object",
        "properties": {
            "uniqueId": {"type": "string", "description": "All sessions of this identity."},
            "connectionId": {"type": "string", "description": "The session of this connection."},
            "issuedBefore": {"type": "integer", "description": format!("Sessions whose token call was answered until then, {TIME}.")},
        },
    });
    let keys = [request, answer, REFUSED].map(str::to_owned);
    document.channel("sessions", SERVER, &keys, channel(business, "sessions", "Revoking sessions"));
    document.operation(
        "revoke",
        Operation {
            action: Action::Receive,
            channel: "sessions",
            summary: "Services end sessions of clients".to_owned(),
            messages: vec![request.to_owned()],
            replies: vec![answer.to_owned(), REFUSED.to_owned()],
            security: &[API_KEY, BEARER_KEY],
            bindings: http("DELETE", query),
        },
    );
}

fn presence(business: &BusinessConfig, document: &mut Document) {
    let (asked, online, answer) = ("presence.request", "online.request", "presence.answer");
    document.message(
        asked,
        json!({"name": "presence", "title": "Who is here", "summary": "Asks which clients are connected, on all edges. It has no body."}),
    );
    let types = json!({"type": "array", "items": {"type": "string", "enum": business.client_types}});
    let texts = |most: usize| json!({"type": "array", "maxItems": most, "items": {"type": "string", "minLength": 1, "maxLength": 256}});
    document.message(
        online,
        json!({
            "name": "online",
            "title": "Which of these are here",
            "summary": "Asks which of up to 10,000 identities are connected; 1 MiB at most",
            "contentType": "application/json",
            "payload": {
                "type": "object",
                "required": ["uniqueIds"],
                "properties": {"uniqueIds": texts(10_000), "tags": texts(MAX_LIST), "clientTypes": types},
            },
            "examples": [{"name": "online", "payload": {"uniqueIds": ["alice", "bob"]}}],
        }),
    );
    let count = json!({"type": "integer", "minimum": 0});
    let text = json!({"type": "string"});
    let data = json!({
        "type": "object",
        "required": ["connections", "complete", "edges"],
        "properties": {
            "connections": count,
            "complete": {"type": "boolean", "description": "Whether every edge has answered. Otherwise nobody is proven to be absent."},
            "uniqueIds": {
                "type": "array",
                "items": {"type": "object", "required": ["uniqueId", "connections"], "properties": {"uniqueId": text, "connections": count}},
            },
            "online": {"type": "array", "items": text, "description": "Of those that a POST asks for."},
            "list": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["connectionId", "uniqueId", "clientType", "tags", "since", "edge"],
                    "properties": {
                        "connectionId": text, "uniqueId": text, "clientType": text, "tags": {"type": "array", "items": text},
                        "since": {"type": "integer", "description": TIME}, "edge": text,
                    },
                },
            },
            "next": {"type": "string", "description": "`after` of the next page; absent on the last one."},
            "edges": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["edge", "state"],
                    "properties": {
                        "edge": text, "instance": text, "state": {"enum": ["answered", "gone", "unknown"]}, "connections": count, "reason": text,
                    },
                },
            },
        },
    });
    let example = json!({
        "connections": 1, "complete": true, "uniqueIds": [{"uniqueId": "alice", "connections": 1}],
        "edges": [{"edge": "edge-0", "instance": EXAMPLE_ID, "state": "answered", "connections": 1}],
    });
    document.message(answer, ok("Who is here; `description` names edges that did not answer", &data, &example));
    let several =
        |what: &str| json!({"type": "string", "description": format!("{what}; several times: of one of these.")});
    let query = json!({
        "type": "object",
        "properties": {
            "uniqueId": several("Of this identity"),
            "tag": several("With this tag"),
            "clientType": {"type": "string", "enum": business.client_types},
            "list": {"type": "boolean", "description": "Also lists the connections."},
            "limit": {"type": "integer", "minimum": 1, "maximum": 500},
            "after": {"type": "string", "description": "The `next` of the page before."},
        },
    });
    let keys = [asked, online, answer, REFUSED].map(str::to_owned);
    document.channel("presence", SERVER, &keys, channel(business, "presence", "Who is here"));
    for (key, method, summary, message, query) in [
        ("presence", "GET", "Services ask who is connected", asked, query),
        ("online", "POST", "Services ask which of many identities are connected", online, Value::Null),
    ] {
        document.operation(
            key,
            Operation {
                action: Action::Receive,
                channel: "presence",
                summary: summary.to_owned(),
                messages: vec![message.to_owned()],
                replies: vec![answer.to_owned(), REFUSED.to_owned()],
                security: &[API_KEY, BEARER_KEY],
                bindings: http(method, query),
            },
        );
    }
}

fn channel(business: &BusinessConfig, call: &str, title: &str) -> Value {
    json!({"address": format!("/{}/websocket/{call}", business.business_type), "title": title})
}

fn http(method: &str, query: Value) -> Value {
    let mut binding = json!({"method": method, "bindingVersion": "0.3.0"});
    if !query.is_null() {
        binding["query"] = query;
    }
    json!({"http": binding})
}

/// An answer to what was done.
fn ok(summary: &str, data: &Value, example: &Value) -> Value {
    json!({
        "name": "ok",
        "title": "ok",
        "summary": summary,
        "contentType": "application/json",
        "bindings": {"http": {"statusCode": 200, "bindingVersion": "0.3.0"}},
        "payload": {
            "type": "object",
            "required": ["result", "description", "data"],
            "properties": {"result": {"const": 0}, "description": {"type": "string"}, "data": data},
        },
        "examples": [{"name": "ok", "payload": {"result": 0, "description": "ok", "data": example}}],
    })
}

fn refused() -> Value {
    json!({
        "name": REFUSED,
        "title": "A refusal",
        "summary": "Nothing was done; retry after the seconds of Retry-After, where the answer has it",
        "contentType": "application/json",
        "payload": {
            "type": "object",
            "required": ["result", "description"],
            "properties": {
                "result": {"type": "integer", "minimum": 40_000, "maximum": 59_999, "description": "The HTTP status and two digits."},
                "description": {"type": "string", "description": "For people."},
            },
        },
        "examples": [{"name": REFUSED, "payload": {"result": 40_101, "description": "no credential was sent"}}],
    })
}
