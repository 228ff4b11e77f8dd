//! `portcullis admin events`: the log, as lines for people or as JSON.

use clap::Args;
use serde_json::Value;

use crate::admin::client::Target;
use crate::admin::wire::Request;
use crate::config::parse_duration;
use crate::store::EventFilter;
use crate::terminal::shown;

use super::output;

#[derive(Args)]
pub(super) struct EventsArgs {
    /// Keep reading
    #[arg(long)]
    follow: bool,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    /// Email, or provider:subject
    #[arg(long)]
    user: Option<String>,
    #[arg(long)]
    app: Option<String>,
    /// Only what was refused
    #[arg(long)]
    denied: bool,
    /// Only what a page's ray id stands for; of a sign-in elsewhere, with what the application was told
    #[arg(long)]
    ray: Option<String>,
    /// Only the last so long, like 1h
    #[arg(long, value_parser = parse_duration)]
    since: Option<std::time::Duration>,
    #[arg(long, default_value_t = 1000)]
    limit: u32,
}

pub(super) async fn run(target: &Target, args: EventsArgs) -> anyhow::Result<()> {
    let filter = EventFilter {
        after: 0,
        since: args.since.map(|since| crate::clock::now().before(since)),
        user: args.user,
        application: args.app,
        denied: args.denied,
        ray: args.ray.clone(),
        limit: args.limit,
    };
    target
        .ask(Request::Events { filter, follow: args.follow }, |event| {
            if args.json {
                return output::line(&event.to_string());
            }
            output::line(&in_words(&event))?;
            match args.ray {
                Some(_) => sent(&event).iter().try_for_each(|line| output::line(line)),
                None => Ok(()),
            }
        })
        .await
}

/// What an application elsewhere was told, line by line.
fn sent(event: &Value) -> Vec<String> {
    let sent = &event["sent"];
    if sent.is_null() {
        return Vec::new();
    }
    let mut lines = vec![format!("  NameID: {}", printable(&sent["name_id"]))];
    for (name, values) in sent["attributes"].as_object().into_iter().flatten() {
        let values: Vec<String> = values.as_array().into_iter().flatten().map(printable).collect();
        lines.push(format!("  {}: {}", printable(&Value::from(name.as_str())), values.join(", ")));
    }
    if let Some(more) = sent["more"].as_u64() {
        lines.push(format!("  and {more} values more"));
    }
    lines
}

fn printable(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => shown(text),
        other => other.to_string(),
    }
}

/// One event as a line for people.
fn in_words(event: &Value) -> String {
    let text = |key: &str| printable(&event[key]);
    let verdict = if event["allowed"] == Value::Bool(true) { "allow" } else { "deny" };
    let user = if text("user_email").is_empty() { text("user_id") } else { text("user_email") };
    let parts = [
        text("created_at"),
        format!("{verdict:5}"),
        text("action"),
        text("reason"),
        user,
        text("app_name"),
        text("method"),
        format!("{}{}", text("app_domain"), text("path")),
        text("status"),
        text("ip_address"),
        text("policy"),
        text("connector"),
        text("detail"),
        text("ray_id"),
    ];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}
