<?php

// An application behind SimpleSAMLphp, for PHP's own server: `/app` wants a login, `/who` tells of the one there is,
// `/logout` ends it. Everything else is SimpleSAMLphp's.

require '/usr/share/simplesamlphp/lib/_autoload.php';

$path = parse_url($_SERVER['REQUEST_URI'], PHP_URL_PATH);
if (!in_array($path, ['/app', '/who', '/logout', '/bye'], true)) {
    return false;
}
if ($path === '/bye') {
    echo 'bye';
    return true;
}
$auth = new \SimpleSAML\Auth\Simple('default-sp');
if ($path === '/app') {
    $auth->requireAuth();
}
if ($path === '/logout') {
    $auth->logout('http://' . $_SERVER['HTTP_HOST'] . '/bye');
}
$in = $auth->isAuthenticated();
header('Content-Type: application/json');
echo json_encode([
    'authenticated' => $in,
    'attributes' => $in ? $auth->getAttributes() : null,
    'name_id' => $in ? $auth->getAuthData('saml:sp:NameID')->getValue() : null,
]);
return true;
