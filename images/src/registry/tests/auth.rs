//! Credentials and tokens: who is shown what, and when again.

use super::*;

const USER: &str = "Basic dTpw"; // u:p

async fn tokens() -> (Server, Image, Client) {
    let server = Server::start().await;
    let image = put_image(&server, noise(100));
    server.want(Auth::Bearer { realm: format!("{}/token", server.url()) });
    (server, image, client())
}

fn name(server: &Server) -> String {
    format!("{}/img", server.registry())
}

#[tokio::test]
async fn a_token_is_fetched_once_for_a_pull_and_kept_for_the_next() {
    let (server, image, client) = tokens().await;
    for _ in 0..2 {
        check_pulled(&server, &image, pull(&client, &name(&server)).await, Ok(()));
    }
    let log = server.log();
    let wanted: Vec<&String> = log.iter().filter(|line| line.contains("/token")).collect();
    assert_eq!(
        wanted,
        ["GET /token?client_id=berth&service=test%20registry&scope=repository:img:pull"]
    );
    assert_eq!(log.len(), 2 + 2 * 3, "{log:?}");
}

#[tokio::test]
async fn a_password_goes_to_the_token_service_and_not_to_the_registry() {
    let (server, image, client) = tokens().await;
    server.token_wants(USER);
    let credentials = Credentials::basic("u", "p");
    check_pulled(&server, &image, pull_with(&client, &name(&server), &credentials).await, Ok(()));
    for seen in server.seen() {
        let shows = seen.header("authorization").is_some_and(|value| value == USER);
        assert_eq!(shows, seen.path.starts_with("/token"), "{seen:?}");
    }
    assert!(server.log().iter().any(|line| line.ends_with("&account=u")));
}

#[tokio::test]
async fn an_identity_token_is_posted_to_the_token_service() {
    let (server, image, client) = tokens().await;
    server.token_wants("grant_type=refresh_token&refresh_token=re%2Bfresh");
    let auth = AuthConfig { identity_token: Secret::new("re+fresh"), ..AuthConfig::default() };
    let credentials = Credentials::new(&auth).unwrap();
    check_pulled(&server, &image, pull_with(&client, &name(&server), &credentials).await, Ok(()));
    let post = server.seen().into_iter().find(|seen| seen.method == "POST").unwrap();
    assert_eq!(
        post.body,
        "client_id=berth&service=test%20registry&grant_type=refresh_token&refresh_token=re%2Bfresh&scope=repository:img:pull"
    );
    assert_eq!(post.header("content-type"), Some("application/x-www-form-urlencoded"));
    assert_eq!(post.path, "/token");
    assert_eq!(post.header("authorization"), None);
}

#[tokio::test]
async fn a_registry_token_is_sent_as_it_is() {
    let (server, image, client) = tokens().await;
    server.allow_token("verbatim");
    let auth = AuthConfig { registry_token: Secret::new("verbatim"), ..AuthConfig::default() };
    let credentials = Credentials::new(&auth).unwrap();
    check_pulled(&server, &image, pull_with(&client, &name(&server), &credentials).await, Ok(()));
    assert!(!server.log().iter().any(|line| line.contains("/token")));
    server.expire_tokens();
    let found = pull_with(&client, &name(&server), &credentials).await;
    let expected = "image $R/img:latest: access denied: GET http://$R/v2/img/manifests/latest: 401 Unauthorized; sent a registry token";
    check_pulled(&server, &image, found, Err(expected));
}

#[tokio::test]
async fn basic_credentials_are_sent_where_they_are_asked_for() {
    let server = Server::start().await;
    let image = put_image(&server, noise(100));
    server.want(Auth::Basic(USER.to_owned()));
    let found = pull_with(&client(), &name(&server), &Credentials::basic("u", "p")).await;
    check_pulled(&server, &image, found, Ok(()));
    // One refusal, then every request carries them.
    assert_eq!(server.log().len(), 4);
    let wrong = pull_with(&client(), &name(&server), &Credentials::basic("u", "q")).await;
    let expected = "access denied: GET http://$R/v2/img/manifests/latest: 401 Unauthorized: UNAUTHORIZED: authentication required; sent the password of user \"u\"";
    check_pulled(&server, &image, wrong, Err(expected));
    let none = pull(&client(), &name(&server)).await;
    check_pulled(&server, &image, none, Err("access denied: ...; sent no credentials"));
}

#[tokio::test]
async fn credentials_for_another_registry_are_not_used() {
    let server = Server::start().await;
    let image = put_image(&server, noise(100));
    server.want(Auth::Basic(USER.to_owned()));
    for (address, expected) in
        [("other.io".to_owned(), Err("sent no credentials")), (server.url(), Ok(()))]
    {
        let auth = AuthConfig {
            username: "u".to_owned(),
            password: Secret::new("p"),
            server_address: address,
            ..AuthConfig::default()
        };
        let credentials = Credentials::new(&auth).unwrap();
        let before = server.seen().len();
        let found = pull_with(&client(), &name(&server), &credentials).await;
        check_pulled(&server, &image, found, expected);
        let shown =
            server.seen()[before..].iter().any(|seen| seen.header("authorization").is_some());
        assert_eq!(shown, expected.is_ok());
    }
}

#[tokio::test]
async fn a_token_that_expires_in_mid_pull_is_renewed_once_for_all_layers() {
    let (server, image, client) = tokens().await;
    let session = session(&client, &name(&server), &Credentials::anonymous()).await.unwrap();
    let resolved = session.resolve(&amd64(), &Known::nothing()).await.unwrap();
    server.expire_tokens();
    let layer = &resolved.manifest.layers[0].descriptor;
    let (one, two, three) = tokio::join!(
        read_layer(&session, layer),
        read_layer(&session, layer),
        read_layer(&session, layer)
    );
    for found in [one, two, three] {
        check_pulled(&server, &image, found, Ok(()));
    }
    let fetched = server.log().iter().filter(|line| line.contains("/token")).count();
    assert_eq!(fetched, 2);
}

#[tokio::test]
async fn tokens_are_not_shared_between_users() {
    let (server, image, client) = tokens().await;
    for user in ["a", "b"] {
        let credentials = Credentials::basic(user, "p");
        check_pulled(
            &server,
            &image,
            pull_with(&client, &name(&server), &credentials).await,
            Ok(()),
        );
    }
    check_pulled(&server, &image, pull(&client, &name(&server)).await, Ok(()));
    let fetched = server.log().iter().filter(|line| line.contains("/token")).count();
    assert_eq!(fetched, 3);
}

#[tokio::test]
async fn a_service_that_refuses_is_named_with_its_words() {
    let (server, image, client) = tokens().await;
    server.token_wants("Basic other");
    let found = pull_with(&client, &name(&server), &Credentials::basic("u", "hunter2")).await;
    let expected = "image $R/img:latest: access denied: GET http://$R/token: 401 Unauthorized: incorrect username or password; sent the password of user \"u\"";
    check_pulled(&server, &image, found, Err(expected));
}

#[tokio::test]
async fn a_token_that_does_not_do_ends_the_pull() {
    let (server, image, client) = tokens().await;
    let useless = || Reply::json(200, r#"{"token":"useless"}"#);
    server.queue("/token", [useless(), useless(), useless()]);
    let found = pull(&client, &name(&server)).await;
    check_pulled(
        &server,
        &image,
        found,
        Err("access denied: ...401 Unauthorized...; sent no credentials"),
    );
    assert_eq!(server.log().len(), 3, "{:?}", server.log());
}

#[tokio::test]
async fn an_unknown_scheme_is_named() {
    let server = Server::start().await;
    let image = put_image(&server, noise(100));
    server.queue("latest", [Reply::status(401).with("WWW-Authenticate", "Negotiate abc==")]);
    let found = pull(&client(), &name(&server)).await;
    let expected = "401 Unauthorized; it asks for negotiate, and only Bearer and Basic are known; sent no credentials";
    check_pulled(&server, &image, found, Err(expected));
}

/// F-03: the wire shows no credential when the realm is refused.
#[tokio::test]
async fn a_realm_at_the_metadata_service_gets_nothing() {
    let server = Server::start().await;
    let image = put_image(&server, noise(100));
    for realm in
        ["http://169.254.169.254/token", "http://[fd00:ec2::254]/token", "gopher://x/token"]
    {
        server.want(Auth::Bearer { realm: realm.to_owned() });
        let credentials = Credentials::basic("u", "p");
        let found = pull_with(&client(), &name(&server), &credentials).await;
        check_pulled(&server, &image, found, Err("http://$R/v2: its token service"));
    }
    assert!(server.seen().iter().all(|seen| seen.header("authorization").is_none()));
}

/// A token service that redirects gets the password itself, not for its friends.
#[tokio::test]
async fn a_password_does_not_follow_a_redirect_of_the_token_service() {
    let (server, image, client) = tokens().await;
    let other = Server::start().await;
    server.queue("/token", [Reply::redirect(307, &format!("{}/token", other.url()))]);
    server.allow_token("token-1");
    let credentials = Credentials::basic("u", "p");
    check_pulled(&server, &image, pull_with(&client, &name(&server), &credentials).await, Ok(()));
    assert_eq!(other.seen().len(), 1);
    assert_eq!(other.seen()[0].header("authorization"), None);
}

#[tokio::test]
async fn a_refresh_token_does_not_follow_any_redirect() {
    let (server, image, client) = tokens().await;
    let other = Server::start().await;
    server.queue("/token", [Reply::redirect(307, &format!("{}/token", other.url()))]);
    let auth = AuthConfig { identity_token: Secret::new("refresh"), ..AuthConfig::default() };
    let found = pull_with(&client, &name(&server), &Credentials::new(&auth).unwrap()).await;
    check_pulled(
        &server,
        &image,
        found,
        Err("access denied: POST http://$R/token: 307 Temporary Redirect; sent an identity token"),
    );
    assert!(other.seen().is_empty());
}
